"""The comparison: controls before methods, no test target before the scoring, one table."""

from __future__ import annotations

import json
import signal
from dataclasses import replace
from math import log2
from pathlib import Path

import polars as pl
import pytest
import torch
import yaml
from lightning import Trainer
from lightning.pytorch.demos.boring_classes import BoringModel
from pipeline import PATTERNS as PATTERNS_FILE
from pipeline import HashEncoder, MadeUpUsers, environment, module, trainer
from polars.testing import assert_frame_equal
from raw_files import games
from test_cli import here as here

from data_prep.prepare import DataSettings, prepare
from rpp.baselines.base import Recommender
from rpp.cli import main, run
from rpp.comparison.base import PromptMethod, Task
from rpp.comparison.chance import control_ranks, suspicious
from rpp.comparison.comparison import Comparison
from rpp.comparison.policy import PermutedPrompts, Policy
from rpp.comparison.references import Enumeration, Manual, RandomPolicy
from rpp.comparison.report import ComparisonReport, make_rows
from rpp.evaluation import n_differing, step_permuted
from rpp.learners.rpp import RPP
from rpp.llms.base import ScriptedLanguageModel
from rpp.llms.controls import answers_at_random, copies_the_list, shown_candidates
from rpp.metrics import METRICS, chance_interval, paired_p_value, target_ranks
from rpp.prompts.patterns import load_patterns
from rpp.prompts.refine import Refiner
from rpp.ranker import Counters, Ranker
from rpp.results.render import cells
from rpp.results.rows import Expense, as_frame
from rpp.types import (
    InputError,
    LanguageModelError,
    LanguageModelStop,
    Ranking,
    TargetAccessError,
    final_scoring,
)

PATTERNS = load_patterns("conf/patterns/movies.yaml")
GOOD = PATTERNS.reasoning[3].replace("{n_candidates}", "10")


@pytest.fixture
def users(tmp_path):
    made = MadeUpUsers(n_train=20, n_validation=20, n_test=60, batch_size=20)
    made.folder = tmp_path / "made-up"
    return made


def knows(users, when=""):
    """A model that names the target first where the prompt holds a text; copies the list else."""
    with final_scoring():
        target = {
            frozenset(item.title for item in e.candidates): e.candidates[e.target].title
            for split in ("train", "validation", "test")
            for e in users.episodes(split)
        }

    def reply(prompt):
        if when not in prompt:
            return copies_the_list(prompt)
        return "1. " + target[frozenset(shown_candidates(prompt))]

    return reply


def task(users, reply=copies_the_list, **options):
    ranker = Ranker(ScriptedLanguageModel(reply=reply), "generate")
    return Task(users, PATTERNS, ranker, n_steps=2, **options)


def scored(rankings, episodes):
    with final_scoring():
        return METRICS["ndcg@10"](target_ranks(rankings, episodes)).mean().item()


def compare(users, tmp_path, methods, reply=copies_the_list, recommenders=(), **options):
    """Run a comparison of made-up users; the module after its test."""
    made = Comparison(
        methods=methods, recommenders=list(recommenders), reference=methods[0].name, n_steps=2
    )
    report = ComparisonReport(str(tmp_path / "results"))
    trainer(tmp_path, environment(reply, **options), report).test(made, users, verbose=False)
    return made


# -- statistics -----------------------------------------------------------------------------------


def test_chance_interval_by_hand():
    """Two candidates: NDCG is 1 or 1/log2(3), each with probability 1/2."""
    other = 1 / log2(3)
    low, high = chance_interval("ndcg@10", 2, 100, 0.95)
    middle, spread = (1 + other) / 2, (1 - other) / 2
    assert (low, high) == pytest.approx(
        (middle - 0.196 * spread, middle + 0.196 * spread), rel=1e-4
    )
    # NDCG@1 of two users is 0, 1/2 or 1, of which 1 has the probability .01
    assert chance_interval("ndcg@1", 10, 2, 0.999) == (0, 1)
    assert chance_interval("ndcg@1", 10, 2, 0.97) == (0, 0.5)


def test_p_value_by_hand():
    """Three users who all gain: 2 of the 2^3 assignments of signs are as extreme."""
    gains = torch.tensor([0.2, 0.1, 0.3, float("nan")])
    assert paired_p_value(gains, torch.zeros(4)) == pytest.approx(2 / 8)
    assert paired_p_value(torch.zeros(4), torch.zeros(4)) == 1
    assert paired_p_value(torch.tensor([0.5, float("nan")]), torch.zeros(2)) == 1


def test_p_value_is_uniform_without_a_difference():
    rng = torch.Generator().manual_seed(0)
    draws = torch.randn(60, 2, 40, generator=rng)
    below = sum(paired_p_value(ours, theirs) < 0.2 for ours, theirs in draws)
    assert 4 <= below <= 22  # 12 of 60 expected


# -- methods --------------------------------------------------------------------------------------


def test_the_manual_prompt_is_that_of_the_file(users):
    asked = []
    mine = task(users, lambda prompt: asked.append(prompt) or "")
    Manual().learn(mine)(users.episodes("validation"))
    assert len(asked) == 20
    for prompt, episode in zip(sorted(asked), users.episodes("validation"), strict=True):
        assert PATTERNS.role[1] in prompt
        assert PATTERNS.reasoning[4].replace("{n_candidates}", "10") in prompt
        assert prompt.count("\n") > len(episode.candidates) + 10  # 10 past items and the list


def test_enumeration_takes_the_prompt_that_is_best_on_validation_users(users):
    mine = task(users, knows(users, when=GOOD))
    drawn = Enumeration(64)
    test = users.episodes("test")
    assert scored(drawn.learn(mine)(test), test) == 1
    assert drawn.max_calls(mine, 60) == 64 * 20 + 60
    assert mine.ranker.counters.calls <= 64 * 20 + 60
    assert scored(Manual().learn(mine)(test), test) < 0.7


def test_a_prompt_that_is_answered_for_hardly_anybody_is_not_chosen(users):
    """Left out, failures would let it win by the one user for whom there was a right answer."""
    lucky = {item.title for item in users.episodes("validation")[0].candidates}
    right = knows(users, when=GOOD)

    def reply(prompt):
        if GOOD in prompt and set(shown_candidates(prompt)) != lucky:
            return LanguageModelError("refused")
        return right(prompt)

    test = users.episodes("test")
    rankings = Enumeration(64).learn(task(users, reply))(test)
    assert not any(ranking.failed for ranking in rankings)


def test_the_random_policy_draws_for_each_user_alone(users):
    test = users.episodes("test")
    mine = task(users, answers_at_random)
    forwards = RandomPolicy().learn(mine)(test)
    backwards = RandomPolicy().learn(mine)(test[::-1])
    assert [each.order for each in backwards[::-1]] == [each.order for each in forwards]


def learner(**options):
    return module(n_steps=2, n_static_prompts=1, actor_lr=0.01, critic_lr=0.01, **options)


def policy(users, name="RPP", max_epochs=2, refined=False, **options):
    logs = str(users.folder / "logs")
    return Policy(name, learner(**options), max_epochs, 10, refined, log_dir=logs)


def test_a_policy_is_fitted_once(users, tmp_path):
    """The same settings load what was fitted; another setting, sentence or model fits anew."""
    mine = task(users, knows(users, when=GOOD))
    test = users.episodes("test")
    first = policy(users)
    rankings = first.learn(mine)(test)
    bound = first.max_calls(mine, 60)
    assert bound == 20 * 2 * 2 + 20 * 2 * 2 + 60 * 2
    assert 0 < mine.ranker.counters.calls <= bound
    again = task(users, knows(users, when=GOOD))
    kept = policy(users)
    assert [r.order for r in kept.learn(again)(test)] == [r.order for r in rankings]
    assert again.ranker.counters.calls <= 60 * 2  # test users alone
    assert kept.n_prompts_reused == 20 * 2 * 2 + 20 * 2 * 2
    assert len(kept.played) == int(kept.learner.inference_steps)
    for other in (
        policy(users, discount=0.5),
        policy(users, learn=["role"]),
        policy(users, max_epochs=1),
    ):
        asked = task(users, knows(users, when=GOOD))
        other.learn(asked)
        assert asked.ranker.counters.calls > 60
    assert not list((users.folder / "policies").glob(".fit*"))


def test_a_policy_finds_the_sentence_that_works(users, tmp_path):
    mine = task(users, knows(users, when=GOOD))
    test = users.episodes("test")
    mine_learns = policy(users, max_epochs=25, learn=["reasoning"], entropy_coef=0.0)
    assert scored(mine_learns.learn(mine)(test), test) > 0.9
    assert scored(RandomPolicy().learn(mine)(test), test) < 0.7


def test_a_policy_that_chooses_for_each_user_loses_when_prompts_are_permuted(users, tmp_path):
    """The sentence that works is one for the users of even number, another for the odd ones."""
    other = PATTERNS.reasoning[6].replace("{n_candidates}", "10")
    odd = {
        frozenset(item.title for item in e.candidates) for e in users.episodes("test") if e.user % 2
    }
    answers = {when: knows(users, when) for when in (GOOD, other)}

    def reply(prompt):
        return answers[other if frozenset(shown_candidates(prompt)) in odd else GOOD](prompt)

    class Knowing(RPP):
        """Chooses what works."""

        def greedy(self, state, step, episodes):
            decision = super().greedy(state, step, episodes)
            chosen = torch.tensor([6 if episode.user % 2 else 3 for episode in episodes])
            decision.actions[:, self.patterns.names.index("reasoning")] = chosen
            return decision

    def knowing():
        made = policy(users, max_epochs=1)
        made.learner = Knowing(patterns=PATTERNS_FILE, n_steps=2, n_static_prompts=1)
        made.learner.encoder = HashEncoder()
        return made

    permuted = PermutedPrompts(knowing())
    made = compare(users, tmp_path, [knowing(), permuted], reply)
    assert permuted.name == "RPP, prompts permuted"
    mine = task(users)
    assert permuted.max_calls(mine, 60) == permuted.policy.max_calls(mine, 60) + 60
    own, anothers = make_rows(made, made.target_ranks(), "")
    assert own.scores["ndcg@10"].mean == 1
    assert 0.5 < anothers.scores["ndcg@10"].mean < 0.9
    assert anothers.expense.prompts == own.expense.prompts + 60  # fitted once, for both
    report = (tmp_path / "results/comparison.md").read_text()
    gain = 1 - anothers.scores["ndcg@10"].mean
    assert 20 < permuted.n_differing < 60
    assert f" {permuted.n_differing} of 60 prompts differ from the user's own." in report
    assert f"NDCG@10, RPP - RPP, prompts permuted: +{gain:.3f} [" in report
    assert "], p <.001." in report


def test_prompts_are_permuted_across_all_users(users, tmp_path):
    """Over the bounds of batches; nobody keeps the own one; who has fewer items shows them all."""
    mine = task(users)
    asks = policy(users, max_epochs=1)
    asks.learn(mine)
    environment, seed = asks.learner.environment, asks.learner.policy_seed
    episodes = users.episodes("test")[:6]
    episodes[4] = replace(episodes[4], history=episodes[4].history[:2])
    actions = torch.tensor([[k, k, k, k] for k in range(6)]).remainder(
        torch.tensor(PATTERNS.n_actions)
    )
    lengths = [3, 4, 5, 6, 8, 7]
    played = [
        environment.step(episodes[start:end], actions[start:end], lengths[start:end])
        for start, end in ((0, 4), (4, 6))
    ]
    first, second = step_permuted(environment, played, seed)
    assert [*first.episodes, *second.episodes] == episodes
    given = torch.cat([first.actions, second.actions]).tolist()
    assert sorted(given) == sorted(actions.tolist())
    assert not any(new == old for new, old in zip(given, actions.tolist(), strict=True))
    from_whom = [actions.tolist().index(new) for new in given]
    assert {k < 4 for k in from_whom[:4]} == {True, False}  # some are of the other batch
    assert first.lengths + second.lengths == [lengths[k] for k in from_whom]
    shown = [prompt.n_history for turn in (first, second) for prompt in turn.prompts]
    assert shown == [2 if k == 4 else lengths[giver] for k, giver in enumerate(from_whom)]
    assert n_differing(played, [first, second]) == 6
    assert n_differing(played, played) == 0
    assert (
        step_permuted(environment, played[:1], seed)[0].actions.tolist() != first.actions.tolist()
    )
    alone = [environment.step(episodes[:1], actions[:1], lengths[:1])]
    assert step_permuted(environment, alone, seed) == []
    users._episodes["test"] = episodes[:1]
    with pytest.raises(InputError, match=r"permuted needs two users: raise data\.n_test_users"):
        PermutedPrompts(asks).learn(mine)


def test_a_refined_policy_needs_a_refiner_and_uses_it(users, tmp_path):
    prompts = []

    def reply(prompt):
        prompts.append(prompt)
        return copies_the_list(prompt) or "Kindly rank them well for me, all of them."

    mine = task(users, reply)
    plus = policy(users, "RPP+", max_epochs=1, refined=True)
    with pytest.raises(InputError, match=r"RPP\+ needs a refiner: set environment.refiner"):
        plus.learn(mine)
    refiner = Refiner(mine.ranker.llm, PATTERNS, "titles")
    plus.learn(replace(mine, refiner=refiner))(users.episodes("test"))
    assert any("Kindly rank them well" in p and "Here are 10" in p for p in prompts)


def test_a_refined_policy_needs_as_many_prompts_when_its_weights_are_used_again(users, tmp_path):
    needed = []
    for _ in range(2):
        mine = task(users)
        refiner = Refiner(mine.ranker.llm, PATTERNS, "titles")
        plus = policy(users, "RPP+", max_epochs=1, refined=True)
        plus.learn(replace(mine, refiner=refiner))(users.episodes("test"))
        needed.append(mine.ranker.n_prompts + plus.n_prompts_reused)
    assert plus.n_prompts_reused == 20 * 2 + 20 * 2
    assert needed[0] == needed[1]


@pytest.mark.parametrize("options", [{"max_epochs": 0}, {"batch_size": 0}])
def test_a_policy_refuses_to_learn_nothing(options):
    with pytest.raises(InputError, match="at least 1"):
        Policy("RPP", learner(), **options)


# -- controls and the guard -----------------------------------------------------------------------


def test_controls_score_chance(users):
    test = users.episodes("test")
    ranks = control_ranks(task(users), test)
    assert len(ranks) == 6
    assert suspicious(ranks, 10) == []


def test_controls_go_through_the_decoding_of_the_comparison(users, monkeypatch):
    """A leak where scores are read leaves those alone whose replies are read."""
    llm = ScriptedLanguageModel(scorer=lambda *_: -1.0)
    mine = replace(task(users), ranker=Ranker(llm, "likelihood", show_candidates=False))
    test = users.episodes("test")
    ranks = control_ranks(mine, test)
    assert ranks.keys() >= {"scores_all_alike", "scores_at_random"}
    assert len(ranks) == 8
    assert suspicious(ranks, 10) == []

    def leaks(self, scores, episode):
        order = sorted(range(len(scores)), key=lambda k: k != episode.withheld)
        return Ranking(tuple(order), len(order), "valid")

    monkeypatch.setattr(Ranker, "_from_scores", leaks)
    assert {sentence.split()[0] for sentence in suspicious(control_ranks(mine, test), 10)} == {
        "scores_all_alike", "scores_at_random",
    }  # fmt: skip


class OnePosition(MadeUpUsers):
    """The fault of the authors' code: every target at one place of the list."""

    def __init__(self, position: int) -> None:
        super().__init__(n_train=5, n_validation=5, n_test=60, batch_size=20)
        self._episodes["test"] = [
            replace(episode, withheld=position) for episode in self.episodes("test")
        ]


@pytest.mark.parametrize("position", [0, 5, 9])
def test_no_table_where_a_control_has_skill(tmp_path, position, capsys):
    asked = []

    def reply(prompt):
        asked.append(prompt)
        return copies_the_list(prompt)

    users = OnePosition(position)
    with pytest.raises(InputError, match="there is no table, because a ranker without skill has"):
        compare(users, tmp_path, [Manual()], reply)
    assert not (tmp_path / "results").exists()
    assert len(asked) <= 8  # the budget's; the methods have not begun


class Peeks(PromptMethod):
    """A planted violation: it looks at a test target while it learns, or while it ranks."""

    name = "peeks"

    def __init__(self, early: bool) -> None:
        self.early = early

    def learn(self, task):
        if self.early:
            assert task.data.episodes("test")[0].target >= 0
        return lambda episodes: [Manual().learn(task)(episodes)[k] for k in (episodes[0].target,)]

    def max_calls(self, task, n_users):
        return n_users


class PeeksToo(Recommender):
    """The same among the recommenders."""

    name = "peeks too"

    def fit(self, folder):
        self._scorer = lambda episodes: torch.tensor(
            [[float(k == e.target) for k in range(10)] for e in episodes]
        )

    def learn(self, data):
        raise NotImplementedError


@pytest.mark.parametrize("method", [Peeks(True), Peeks(False)])
def test_a_method_that_looks_at_a_test_target_ends_the_comparison(users, tmp_path, method):
    with pytest.raises(TargetAccessError, match="test users may not influence any choice"):
        compare(users, tmp_path, [Manual(), method])
    assert not (tmp_path / "results").exists()


def test_a_recommender_that_looks_at_a_test_target_ends_the_comparison(users, tmp_path):
    with pytest.raises(TargetAccessError, match="test users may not influence any choice"):
        compare(users, tmp_path, [Manual()], recommenders=[PeeksToo()])


class Breaks(Manual):
    """Fails as nobody foresaw."""

    name = "breaks"

    def learn(self, task):
        raise RuntimeError("out of memory")


def test_a_fault_in_a_method_loses_no_other(users, tmp_path):
    with pytest.raises(RuntimeError, match="out of memory"):
        compare(users, tmp_path, [Manual(), Breaks(), RandomPolicy()])
    table = pl.read_csv(tmp_path / "results/unfinished/comparison.csv")
    assert table["method"].to_list() == ["manual prompt", "chance"]
    compare(users, tmp_path, [Manual(), RandomPolicy()])
    assert not (tmp_path / "results/unfinished").exists()


# -- the table ------------------------------------------------------------------------------------


def test_rows_are_what_the_methods_ranked(users, tmp_path):
    made = compare(users, tmp_path, [Manual(), RandomPolicy()], knows(users))
    manual, other = make_rows(made, made.target_ranks(), "ml-1m")
    assert manual.scores["ndcg@1"].mean == other.scores["ndcg@1"].mean == 1
    assert manual.gain is None
    assert other.gain is not None
    assert other.gain.mean == 0
    assert other.p_value == 1
    assert manual.valid == 0  # it names the target alone
    assert manual.expense is not None
    assert manual.expense.prompts == 60
    assert manual.published == (0.03, 0.35, 0.41)
    assert cells([replace(other, p_value=0.0004)], 10)[1][0][8] == "<.001"
    assert cells([replace(other, p_value=0.03)], 10)[1][0][8] == ".030"
    frame = as_frame([manual, other], 10)
    assert frame["method"].to_list() == ["manual prompt", "random policy", "chance"]
    assert frame["ndcg@1"].to_list() == [1, 1, 0.1]
    written = pl.read_csv(tmp_path / "results/comparison.csv")
    shown = [name for name in frame.columns if frame[name].null_count() < frame.height]
    expected = as_frame(make_rows(made, made.target_ranks(), ""), 10).select(shown)
    assert_frame_equal(written.select(shown), expected, check_dtypes=False)


def test_costs_are_differences():
    before, after = Counters(calls=3, cache_hits=2), Counters(7, 12, 100, 20, 2.5)
    assert Expense.between(before, after, 1.5) == Expense(14, 4, 100, 20, 2.5, 1.5)


class Fails(PromptMethod):
    """Cannot be run on these data."""

    name = "fails"

    def learn(self, task):
        raise InputError("there is no manual prompt: write one")

    def max_calls(self, task, n_users):
        return 0


def test_a_method_that_cannot_be_run_costs_no_other(users, tmp_path, capsys):
    made = compare(users, tmp_path, [Manual(), Fails(), RandomPolicy()])
    assert [result.method.name for result in made.results] == ["manual prompt", "random policy"]
    printed = capsys.readouterr()
    assert "Left out: fails: there is no manual prompt: write one." in printed.out
    record = json.loads((tmp_path / "results/comparison.json").read_text())
    assert record["not_run"] == {"fails": "there is no manual prompt: write one"}


def test_a_budget_ends_it_with_the_methods_that_are_through(users, tmp_path, capsys):
    with pytest.raises(LanguageModelStop, match="max_calls"):
        compare(users, tmp_path, [Manual(), Enumeration(8)], answers_at_random, max_calls=100)
    printed = capsys.readouterr().out
    assert "Budget: at most 100 calls" in printed
    assert "Stopped before these had ranked: best of 8 static." in printed
    record = json.loads((tmp_path / "results/unfinished/comparison.json").read_text())
    assert [row["name"] for row in record["rows"]] == ["manual prompt"]
    assert record["not_reached"] == ["best of 8 static"]


class Interrupted(Fails):
    """The user loses patience."""

    def learn(self, task):
        raise KeyboardInterrupt


class FitInterrupted(Fails):
    """The user loses patience while a policy is fitted: Lightning makes a SystemExit of it."""

    def learn(self, task):
        class Impatient(BoringModel):
            def training_step(self, batch, batch_idx):
                raise KeyboardInterrupt

        fit = Trainer(max_steps=1, accelerator="cpu", logger=False, enable_checkpointing=False,
                      enable_progress_bar=False, enable_model_summary=False).fit  # fmt: skip
        with torch.inference_mode(False), torch.enable_grad():
            fit(Impatient())


@pytest.mark.parametrize("method", [Interrupted, FitInterrupted])
def test_an_interrupt_ends_it_with_the_methods_that_are_through(
    users, tmp_path, capsys, method, monkeypatch
):
    """The table of a former run stays whole."""
    monkeypatch.setattr(signal, "signal", lambda *_: None)  # Lightning's: ignore the next ones
    compare(users, tmp_path, [Manual(), RandomPolicy()])
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        compare(users, tmp_path, [Manual(), method()])
    assert "manual prompt" in capsys.readouterr().out
    for folder, n_methods in (("results", 2), ("results/unfinished", 1)):
        table = pl.read_csv(tmp_path / folder / "comparison.csv")
        assert table["method"].to_list()[:-1] == ["manual prompt", "random policy"][:n_methods]


def test_what_is_no_comparison_is_refused():
    for options, sentence in (
        ({}, "there is nothing to compare"),
        ({"methods": [Manual(), Manual()]}, "two methods are called 'manual prompt'"),
        ({"methods": [Manual()], "reference": "RPP"}, "the reference 'RPP' is not compared"),
    ):
        with pytest.raises(InputError, match=sentence):
            Comparison(**options)


def test_profiles_that_the_data_do_not_know_are_refused(users, tmp_path):
    """They were once left out of every prompt without a word."""
    made = Comparison(
        "conf/patterns/movies_profile.yaml", methods=[Manual()], reference=Manual.name
    )
    with pytest.raises(
        InputError, match=r"prompts tell the user's age, but the data set 'made-up'"
    ):
        trainer(tmp_path, environment()).test(made, users, verbose=False)


# -- the command ----------------------------------------------------------------------------------


@pytest.mark.real
def test_the_command_of_conf_compare(here: Path, capsys):
    """Every method of the files; a second run fits nothing and prints the same."""
    source = DataSettings("games", str(games(here / "raw")), min_interactions=0,
                          n_train_users=4, n_validation_users=4, n_test_users=4)  # fmt: skip
    prepare(source, here / "data/games")
    files = ("conf/compare.yaml", "conf/compare_text.yaml", "conf/compare_refined.yaml", "few.yaml")
    args = ["test", *(word for file in files for word in ("--config", file))]
    small = yaml.safe_load((here / "small.yaml").read_text())
    (here / "few.yaml").write_text(json.dumps(FEW | {"data": small["data"]}))
    main(args)
    said = capsys.readouterr()
    first = said.out
    for name in ("Pop", "SASRec", "UniSRec", "manual prompt", "best of 64 static", "RPP+", "PPO-1"):
        assert f"\n{name} " in first, name
    for pattern in ("role", "history", "reasoning", "format"):
        assert f"\nRPP, {pattern} alone " in first
        assert f"\nRPP+, {pattern} alone " in first
    assert "Left out: VQ-Rec: " in first  # its 256 codes need as many titles
    # RPP's first state is the recommender's vectors
    assert said.err.count("Training LightGCN") == 1
    assert "…" not in first  # nothing is cut off in a narrow terminal
    folder = here / "results/comparison"
    table = pl.read_csv(folder / "comparison.csv")
    assert table["method"][-1] == "chance"
    assert {f"{name}.png" for name in ("comparison", "steps", "positions", "users_by_option")} <= {
        path.name for path in folder.iterdir()
    }
    page = (folder / "comparison.html").read_text()
    assert page.count("data:image/svg+xml") == 4
    assert (folder / "comparison.md").read_text().count("\n| RPP") == table[
        "method"
    ].str.starts_with("RPP").sum()
    main(args)
    again = pl.read_csv(folder / "comparison.csv")
    scores = [name for name in table.columns if "@" in name]
    assert again.select("method", *scores).equals(table.select("method", *scores))
    of_rpp = pl.col("method") == "RPP"
    # what the fit took belongs to the method, whichever run has fitted it
    assert again.filter(of_rpp)["prompts"].item() == table.filter(of_rpp)["prompts"].item()


FEW = {
    "environment": {
        "llm": {
            "class_path": "rpp.llms.controls.ControlLanguageModel",
            "init_args": {"behaviour": "answers_at_random"},
        },
        "decoding": "generate",
        "show_candidates": True,
        "refiner": "same",
        "cache_dir": None,
    },
    "trainer": {"accelerator": "cpu", "enable_progress_bar": False},
}


def test_a_comparison_is_not_fitted(here, capsys):
    with pytest.raises(SystemExit):
        run(["fit", "--config", "conf/compare.yaml"])
    assert "run `python train.py test` in place of fit" in capsys.readouterr().err
