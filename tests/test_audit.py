"""The audit: its command, its words, its files."""

from __future__ import annotations

import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from cli_setup import ROOT, command
from pipeline import MadeUpUsers, environment, trainer
from planted import world
from rich.console import Console
from safetensors import safe_open

from data_prep.prepare import prepare
from rpp import serve
from rpp.audit.command import evidence_for, main
from rpp.audit.findings import find
from rpp.audit.module import Audit, Plan, draw_actions
from rpp.audit.report import best_prompt, draw, in_words, lines, plain
from rpp.callbacks.results import audit_notes
from rpp.cli import reporting_mistakes
from rpp.data.episodes import load_episodes
from rpp.data.lightgcn import LightGCNSettings
from rpp.llms.controls import answers_at_random
from rpp.prompts.patterns import load_patterns
from rpp.types import InputError, TargetAccessError

PATTERNS = load_patterns("conf/patterns/movies.yaml", history_lengths=[1, 4, 10, 20])
OPTIONS = dict(zip(PATTERNS.names, PATTERNS.n_actions, strict=True))


def found(lasting, **planted):
    rewards, actions, _ = world(3, n_options=PATTERNS.n_actions, lasting=lasting, **planted)
    return find(rewards, actions, OPTIONS)


def audit(*options):
    return [*command("fit")[1:], "--audit.n_users", "4", "--audit.n_prompts", "3", *options]


def test_the_command_asks_training_users_alone_and_leaves_the_fit_its_data(here, capsys):
    main(audit())
    printed = capsys.readouterr().out
    assert "Budget: at most 24 calls" in printed
    assert "Audit: 4 training users, 2 targets each, 3 prompts each, 24 rewards" in printed
    assert "…" not in printed  # nothing is cut off in a narrow terminal
    folder = here / "results/ml-100k"
    record = json.loads((folder / "audit.json").read_text())
    assert record["n_rewards"] == 24
    assert record["environment"]["decoding"] == "generate"
    assert set(record["patterns"]) == {*OPTIONS, "evidence"}
    assert record["environment"]["evidence"]  # of its own data: the fit's knows some of its targets
    assert [*(here / "data/audit/custom/baselines").glob("evidence-*/ease.safetensors")]
    assert record["notes"][0] in (folder / "audit.md").read_text()
    assert (folder / "audit.png").stat().st_size > 10_000
    assert {path.name for path in (here / "data").iterdir()} == {"audit"}
    assert not (here / "logs").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"n_targets": 1}, "audit.n_targets is 1: at least 2 are needed"),
        ({"n_users": 2}, "audit.n_users is 2: at least 3 are needed"),
        ({"n_prompts": 1}, "audit.n_prompts is 1"),
        ({"seed": -1}, "audit.seed is -1"),
    ],
)
def test_a_plan_that_could_not_tell_anything(changes, message):
    with pytest.raises(InputError, match=message):
        Plan(**changes)


def test_a_mistake_ends_in_one_sentence(here, capsys):
    with pytest.raises(SystemExit):
        reporting_mistakes(main, audit("--audit.n_targets", "1"))
    assert "audit.n_targets is 1" in capsys.readouterr().err


@pytest.mark.parametrize("command", [main, serve.main], ids=["audit", "serve"])
def test_a_mistyped_option_of_a_command_of_its_own_is_one_line(here, capsys, command):
    """It has no subcommands, whose options were looked up all the same."""
    options = ["--config", "conf/rpp.yaml", "--config", "small.yaml", "--nme", "x"]
    with pytest.raises(SystemExit) as stop:
        reporting_mistakes(command, options)
    assert stop.value.code == 2
    said = capsys.readouterr().err.strip()
    assert said == "error: there is no option nme: did you mean name?"


SOURCES = """
based_on: conf/patterns/movies.yaml
selection: [recent, similar]
evidence:
  sources:
    EASE:
      sentence: "People with my taste: {titles}."
      class_path: rpp.baselines.neighbours.EASE
      init_args: {regularisations: [250.0], lengths: [0]}
    chance:
      sentence: "Others: {titles}."
      class_path: evidence_setup.AtRandom
  options: [{}, {EASE: 1}, {chance: 2}]
"""


def test_recommenders_know_none_of_its_targets(make_prepared, tmp_path):
    """They would know the second of each user, were they fitted as for a single one."""
    (tmp_path / "mine.yaml").write_text(SOURCES.replace("conf", str(ROOT / "conf")))
    single = make_prepared(40, 20, 20)
    both = tmp_path / "custom"
    prepare(replace(single.settings, n_targets=2), both, Console(quiet=True))
    users = Plan(n_users=5).users(load_episodes(both, "train"))
    asked = Audit(load_patterns(tmp_path / "mine.yaml"), users, 2, 0)
    settings = LightGCNSettings(dim=8, n_epochs=1)
    made = evidence_for(asked, both, settings, 0)
    pairs = set(zip(made.data.users.tolist(), made.data.items.tolist(), strict=True))
    targets = {(e.user, e.candidates[e.target].index) for user in users for e in user}
    assert len(targets) == 10
    assert not targets & pairs
    assert len(made.similarities(users[0][0])) == len(users[0][0].history)
    with safe_open(both / "collaborative.safetensors", "pt") as vectors:
        assert vectors.get_tensor("items").shape[1] == 8  # as those of the fit
    with pytest.raises(TargetAccessError, match="leave targets out"):
        evidence_for(asked, single.folder, settings, 0)


def test_a_budget_ends_it_with_the_users_asked_so_far(here, capsys):
    with pytest.raises(SystemExit):
        reporting_mistakes(main, audit("--audit.n_users", "10", "--environment.max_calls", "45"))
    record = json.loads((here / "results/ml-100k/audit.json").read_text())
    assert record["n_rewards"] == 5 * 2 * 3
    assert "The budget ended it before all users were asked." in capsys.readouterr().out


def test_users_without_enough_targets_are_passed_over():
    episodes = MadeUpUsers(5, 1, 1).episodes("train")
    users = Plan(n_users=4).users([*episodes, *episodes[1:]])
    assert [[each.user for each in own] for own in users] == [[k, k] for k in (1, 2, 3, 4)]
    with pytest.raises(InputError, match="0 training users have 2 targets"):
        Plan().users(episodes)


def test_prompts_are_different_and_each_episodes_own():
    first, second = MadeUpUsers(2, 1, 1).episodes("train")
    drawn = draw_actions(PATTERNS, 16, 0, first)
    assert len(np.unique(drawn, axis=0)) == 16
    assert (drawn == draw_actions(PATTERNS, 16, 0, first)).all()
    assert (drawn != draw_actions(PATTERNS, 16, 0, second)).any()
    few = draw_actions(PATTERNS.learning(["history"]), 16, 0, first)
    assert sorted(few[:, 0]) == [0, 1, 2, 3]


def test_rewards_stand_where_their_actions_do(tmp_path):
    """The user's own reward of every prompt, whoever is asked with them."""
    data = MadeUpUsers(7, 1, 1)
    users = [[each, each] for each in data.episodes("train")]
    together = Audit(PATTERNS, users, 3, 0)
    trainer(tmp_path, environment(answers_at_random)).test(together, verbose=False)
    alone = Audit(PATTERNS, users[6:], 3, 0)
    trainer(tmp_path, environment(answers_at_random)).test(alone, verbose=False)
    assert not np.isnan(together.rewards).any()
    assert (together.rewards[6] == alone.rewards[0]).all()
    assert together.rewards.std() > 0


def test_words_follow_the_figures():
    words = " ".join(in_words(found(0.2), "this one"))
    assert "Users differ lastingly" in words
    assert "it looks like this one" in words
    words = " ".join(in_words(found(0.0), "this one"))
    assert "No lasting difference is shown" in words
    assert "an upper bound" in words
    words = " ".join(in_words(found(0.0, luck=0, rest=0, best=0), "this one"))
    assert "sees no difference between common prompts" in words


def test_table_chart_and_record_tell_every_pattern():
    figures = found(0.1)
    assert [line[0].split(",")[0] for line in lines(figures)][:4] == [*OPTIONS]
    assert len(draw(figures, PATTERNS).axes) == 5
    record = json.loads(json.dumps(plain(figures)))
    assert record["patterns"]["history"]["lasting"] == figures.patterns["history"].lasting._asdict()
    best = best_prompt(figures, PATTERNS)
    assert [each.split()[0] for each in best.split("; ")] == [*OPTIONS]
    assert "role 1 (You know the world of film as well as …)" in best


def test_the_table_of_a_test_tells_what_an_audit_of_its_options_found(tmp_path):
    asked = {"language model": "m", "decoding": "likelihood"}
    learner = SimpleNamespace(patterns=PATTERNS, environment_metadata=asked)
    assert audit_notes(tmp_path, learner) == []
    known = {
        "patterns_fingerprint": PATTERNS.fingerprint, "environment": asked,
        "date": "2026-11-28T10:00:00+00:00", "notes": ["In other words."],
    }  # fmt: skip
    (tmp_path / "audit.json").write_text(json.dumps(known | plain(found(0.1))))
    note, *details = audit_notes(tmp_path, learner)
    assert details == ["In other words."]
    learner.environment_metadata = asked | {"evidence": "of data with fewer targets"}
    assert audit_notes(tmp_path, learner) == [note, *details]
    share = found(0.1).lasting_share
    assert (
        f"Audit of 2026-11-28: of what prompts change for one user on one target, {share.mean:.0%}"
        in note
    )
    learner.environment_metadata = asked | {"decoding": "generate"}
    assert audit_notes(tmp_path, learner) == []
    fewer = SimpleNamespace(patterns=PATTERNS.first(2), environment_metadata=asked)
    assert audit_notes(tmp_path, fewer) == []
    (tmp_path / "audit.json").write_text("{")  # the table is not lost by it
    (note,) = audit_notes(tmp_path, fewer)
    assert note == f"{tmp_path / 'audit.json'} is damaged: run the audit again, or remove it."
