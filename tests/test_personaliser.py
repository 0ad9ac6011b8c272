"""A fitted policy at request time: from its checkpoint alone, for users and items of any kind."""

from __future__ import annotations

import asyncio
import json
from dataclasses import asdict

import pytest
import torch
from own_learner import MeanReward
from pipeline import PATTERNS, MadeUpUsers, environment, trainer
from serving_setup import SETTINGS, by_number, fit, made_up

import rpp
from rpp.agents.state import StateEncoder
from rpp.learners.ppo import PPO
from rpp.learners.rpp import RPP
from rpp.predict_input import predict_file
from rpp.prompts.patterns import load_patterns
from rpp.recommendation import RankedItem
from rpp.types import UNKNOWN, InputError, Item, Ranking, Request


@pytest.fixture(scope="module")
def learner_options(tiny_bert_folder):
    return SETTINGS | {"prompt_encoder": str(tiny_bert_folder)}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory, learner_options):
    folder = tmp_path_factory.mktemp("fitted")
    return fit(RPP(**learner_options, history_lengths=[1, 4]), folder, by_number())


@pytest.fixture(scope="module")
def personaliser(checkpoint):
    with rpp.Personaliser.load(checkpoint) as loaded:
        loaded.learner.inference_steps.fill_(2)
        yield loaded


HISTORY, CANDIDATES = made_up(1, 2, 3), made_up(30, 10, 20)


def test_a_checkpoint_is_all_that_is_needed(personaliser):
    found = personaliser.rank(HISTORY, CANDIDATES, user="u3")
    assert [item.id for item in found.ranking] == ["i10", "i20", "i30"]
    assert [item.score for item in found.ranking] == sorted(
        (item.score for item in found.ranking), reverse=True
    )
    assert found.status == "valid"
    assert (found.cost.calls, found.cost.prompt_tokens) == (2, 20)
    assert found.prompt.n_steps == 2
    assert found.prompt.is_final
    json.dumps(asdict(found))


# Lightning asks for the callback that wrote the checkpoint
@pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`:UserWarning")
def test_it_answers_as_the_fitted_policy_does(checkpoint, personaliser, tmp_path, learner_options):
    """Users and items by their ids: the same prompt and ranking as from the trainer's predict."""
    users = MadeUpUsers(n_train=12, n_validation=6, n_test=8)
    fitted = RPP(**learner_options, history_lengths=[1, 4])
    run = trainer(tmp_path, by_number())
    rows = [row for part in run.predict(fitted, users, ckpt_path=checkpoint) for row in part]
    queries = [
        rpp.Query(
            [f"i{item.index}" for item in episode.history],
            [f"i{item.index}" for item in episode.candidates],
            episode.user_id,
        )
        for episode in users.episodes("test")
    ]
    steps = int(torch.load(checkpoint, weights_only=True)["state_dict"]["inference_steps"])
    personaliser.learner.inference_steps.fill_(steps)
    found = personaliser.rank_many(queries)
    personaliser.learner.inference_steps.fill_(2)
    assert [each.prompt.text for each in found] == [row["prompt"] for row in rows]
    assert [[item.id for item in each.ranking] for each in found] == [row["items"] for row in rows]
    for each, row in zip(found, rows, strict=True):
        assert [item.score for item in each.ranking] == pytest.approx(row["scores"])
        for name, pattern in each.prompt.patterns.items():
            assert [o.probability for o in pattern.options] == pytest.approx(
                row["probabilities"][name], abs=1e-6
            )
    assert json.loads(json.dumps(rows)) == rows


def test_the_prompt_says_what_was_chosen_and_why(personaliser):
    made = personaliser.prompt(HISTORY, CANDIDATES)
    assert made.patterns.keys() == {"role", "history", "reasoning", "format"}
    for name, chosen in made.patterns.items():
        probabilities = [option.probability for option in chosen.options]
        assert sum(probabilities) == pytest.approx(1)
        best = max(chosen.options, key=lambda option: option.probability)
        assert chosen.text == best.text, name
        if name != "history":
            assert chosen.sentence in made.text
    assert made.patterns["history"].text in ("last 1", "last 4")


def test_a_hidden_list_is_said_and_can_be_shown(personaliser):
    made = personaliser.prompt(HISTORY, CANDIDATES)
    assert not made.lists_candidates
    assert "does not list the candidates" in made.note
    assert not any(title in made.text for title in CANDIDATES)
    assert all(f". {title}\n" in made.text_with_list for title in CANDIDATES)


def test_lists_of_different_length_and_items_users_and_histories_of_every_kind(personaliser):
    """Each is answered as if it had been asked alone."""
    queries = [
        rpp.Query([], made_up(5, 4)),
        rpp.Query(HISTORY, made_up(*range(100)), "u1"),
        rpp.Query([*HISTORY, "A film from tomorrow"], ["Yesterday 7", *CANDIDATES], "nobody"),
        rpp.Query(["i7"], [{"id": "x1", "title": "Film 3"}, "i9", "i8"], 17, {"age": 30}),
    ]
    together = personaliser.rank_many(queries)
    alone = [personaliser.rank_many([query])[0] for query in queries]
    for one, other in zip(together, alone, strict=True):
        assert one.ranking == other.ranking
        assert one.prompt.text == other.prompt.text
        for name, pattern in one.prompt.patterns.items():
            expected = [option.probability for option in other.prompt.patterns[name].options]
            assert [option.probability for option in pattern.options] == pytest.approx(expected)
    assert [item.id for item in together[0].ranking] == ["i4", "i5"]
    assert together[0].prompt.patterns["history"].sentence == "0"
    assert "I have watched these movies" not in together[0].prompt.text
    assert len(together[1].ranking) == 100
    assert together[2].ranking[0] == RankedItem(None, "Yesterday 7", -7.0)
    assert together[2].prompt.unknown == ("A film from tomorrow", "Yesterday 7")
    assert [item.id for item in together[3].ranking] == ["x1", "i8", "i9"]


@pytest.mark.parametrize(
    ("query", "words"),
    [
        (rpp.Query([], made_up(1)), "1 candidates: give 2 to 100"),
        (rpp.Query([], made_up(*range(101))), "101 candidates: give 2 to 100"),
        (rpp.Query([], "Alien"), "candidates is a single item: give a list"),
        (rpp.Query([], ["i1", "Picture 001"]), "has an item twice"),
        (rpp.Query([], ["New", "new "]), "two candidates with the title 'new'"),
        (rpp.Query([], ["i1", 5]), "the item 5 is not in the catalogue: give its title"),
        (rpp.Query([], ["i1", {"id": "i999"}]), "the item 'i999' is not in the catalogue"),
        (rpp.Query([], made_up(1, 2), None, {"height": 2}), "profile has 'height'"),
    ],
)
def test_what_cannot_be_understood_is_told_in_one_sentence(personaliser, query, words):
    with pytest.raises(InputError, match=words):
        personaliser.rank_many([query])


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ('{"candidates": ["i1"]}', "line 2: 1 candidates: give 2 to 100"),
        ('{"history": ["i1"]}', "line 2: give an object with candidates"),
        ('{"candidates": ["i1", "i2"], "items": 3}', "line 2: give an object with candidates"),
        ("no JSON", "line 2: Expecting value"),
    ],
)
def test_a_wrong_line_of_a_file_is_named_before_anything_is_asked(
    personaliser, tmp_path, line, words
):
    source, target = tmp_path / "users.jsonl", tmp_path / "out.jsonl"
    source.write_text(f'{{"candidates": ["i1", "i2"]}}\n{line}')
    with pytest.raises(InputError, match=words):
        predict_file(personaliser, source, target)
    assert not target.exists()


def test_a_model_that_is_down_leaves_the_prompt(checkpoint):
    with rpp.Personaliser.load(checkpoint, by_number(down=True)) as loaded:
        loaded.learner.inference_steps.fill_(2)
        found = loaded.rank_many([rpp.Query(HISTORY, CANDIDATES)] * 2)
        assert [(each.status, each.reply) for each in found] == [("failed", "nobody there")] * 2
        assert found[0].ranking == ()
        assert found[0].prompt.text
        assert (found[0].prompt.n_steps, found[0].prompt.is_final) == (1, False)
        assert loaded.prompt(HISTORY, CANDIDATES, n_steps=1).text == found[0].prompt.text
        with pytest.raises(InputError, match="n_steps is 3: give 1 to 2"):
            loaded.prompt(HISTORY, CANDIDATES, n_steps=3)


def test_one_failed_call_fails_one_user(checkpoint):
    with rpp.Personaliser.load(checkpoint, by_number(fails_on="Picture 399")) as loaded:
        queries = [rpp.Query(HISTORY, CANDIDATES), rpp.Query(made_up(399), CANDIDATES)]
        assert [each.status for each in loaded.rank_many(queries)] == ["valid", "failed"]


def test_many_callers_at_once(personaliser, checkpoint):
    async def ask(loaded):
        calls = [loaded.arank(made_up(k), made_up(k, k + 1, k + 2)) for k in range(8)]
        made = await loaded.aprompt(HISTORY, CANDIDATES)
        return made, await asyncio.gather(*calls)

    several = by_number()
    several.llm.concurrency = 4
    with rpp.Personaliser.load(checkpoint, several) as loaded:
        made, found = asyncio.run(ask(loaded))
        assert made.text == loaded.prompt(HISTORY, CANDIDATES).text
    for k, each in enumerate(found):
        assert [item.id for item in each.ranking] == [f"i{k}", f"i{k + 1}", f"i{k + 2}"]


@pytest.mark.parametrize("n_prompts", [None, 5])
def test_probabilities_of_the_joint_agents(tmp_path, learner_options, n_prompts):
    learner = PPO(n_prompts, **learner_options, history_lengths=[1, 4])
    with rpp.Personaliser.load(fit(learner, tmp_path, by_number())) as loaded:
        made = loaded.prompt(HISTORY, CANDIDATES)
    for chosen in made.patterns.values():
        assert sum(option.probability for option in chosen.options) == pytest.approx(1)
    possible = [o.probability > 0 for o in made.patterns["reasoning"].options]
    assert all(possible) if n_prompts is None else sum(possible) <= 5


def test_a_learner_of_ones_own_has_no_probabilities(tmp_path):
    learner = MeanReward(0.3, patterns=PATTERNS, n_steps=1)
    with rpp.Personaliser.load(fit(learner, tmp_path, by_number()).parent) as loaded:
        assert loaded.learner.epsilon == 0.3
        role = loaded.prompt(HISTORY, CANDIDATES).patterns["role"]
        assert [option.probability for option in role.options] == [None] * 3


def test_what_cannot_be_written_down_is_asked_for(tmp_path):
    """A model made of functions, a learner with objects for arguments: the fit goes on."""
    learner = MeanReward(torch.tensor(0.3), patterns=PATTERNS, n_steps=1)
    path = fit(learner, tmp_path, environment(lambda prompt: "1. I do not know"))
    with pytest.raises(InputError, match="argument epsilon of MeanReward"):
        rpp.Personaliser.load(path)
    path = fit(MeanReward(patterns=PATTERNS, n_steps=1), tmp_path / "b", environment(str))
    with pytest.raises(InputError, match=r"reply of ScriptedLanguageModel.*pass environment"):
        rpp.Personaliser.load(path)
    with rpp.Personaliser.load(path, by_number()) as loaded:
        assert isinstance(loaded.environment.ranker.llm.model.fingerprint, str)


def test_a_checkpoint_calls_no_class_but_ours(checkpoint, tmp_path):
    content = torch.load(checkpoint, weights_only=True)
    content["policy"]["learner"] = {"class_path": "os.system", "init_args": {"command": "true"}}
    torch.save(content, tmp_path / "best.ckpt")
    with pytest.raises(InputError, match=r"there is no PromptLearner os\.system"):
        rpp.Personaliser.load(tmp_path)
    del content["policy"]
    torch.save(content, tmp_path / "best.ckpt")
    with pytest.raises(InputError, match="earlier version of rpp: fit again"):
        rpp.Personaliser.load(tmp_path)
    with pytest.raises(InputError, match="there is no checkpoint"):
        rpp.Personaliser.load(tmp_path / "nothing")


@pytest.mark.parametrize("options", [{}, {"n_sentences": 2, "history_lengths": [3]}])
@pytest.mark.parametrize("name", ["movies", "games", "music", "movies_profile"])
def test_patterns_survive_as_content(name, options):
    patterns = load_patterns(f"conf/patterns/{name}.yaml", **options)
    again = load_patterns(json.loads(json.dumps(patterns.content)))
    assert again == patterns
    assert again.fingerprint == patterns.fingerprint


@pytest.mark.parametrize("pooling", ["gru", "mean"])
def test_a_state_knows_its_own_list_alone(pooling):
    """Lists of other lengths in the batch change nothing; an unknown item counts as zeros."""
    torch.manual_seed(0)
    encoder = StateEncoder(torch.randn(9, 4), 3, 8, pooling)
    lists = [(0, 1, 2), (3, 4), (5, UNKNOWN, 6, 7)]
    requests = [
        Request(0, (), tuple(Item(k, f"title {n}") for n, k in enumerate(rows))) for rows in lists
    ]
    rankings = [Ranking(tuple(range(len(rows))), len(rows), "valid") for rows in lists]
    encodings = torch.randn(3, 3)
    together = encoder.observe(encodings, rankings, requests)
    assert together.items[2, 1].tolist() == [0.0] * 4  # not the last item's vector
    for row in range(3):
        one = encoder.observe(encodings[row : row + 1], rankings[row : row + 1], [requests[row]])
        torch.testing.assert_close(encoder(together)[row], encoder(one)[0])
    beyond = Request(0, (), (Item(0, "a"), Item(9, "b")))
    with pytest.raises(IndexError):
        encoder.observe(encodings[:1], [Ranking((0, 1), 2, "valid")], [beyond])
