"""An optimum that only an agent can find who sees how the language model ranked a step before."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from pipeline import PATTERNS, HashEncoder, MadeUpUsers, environment, shown_history, trainer

from rpp.learners.ppo import PPO
from rpp.learners.rpp import RPP
from rpp.llms.controls import shown_candidates

RISING, FALLING = 2, 6
"""The reasoning sentence that is right after a ranking in that order."""


def coin(titles):
    """Heads or tails of a set of candidates; neither user nor item vectors tell."""
    return int(hashlib.sha256("\n".join(sorted(titles)).encode()).hexdigest(), 16) % 2


@pytest.fixture
def patterns(tmp_path):
    """The films' sentences; an answer tells from the history shown whether a step went before."""
    own = {"based_on": str(Path(PATTERNS).resolve()), "history": {"start": 1, "increments": [2, 3]}}
    path = tmp_path / "patterns.yaml"
    path.write_text(yaml.safe_dump(own))
    return str(path)


def planted(users, reasoning):
    """A ranker whose first answer is in the rising or falling order of the items' first numbers.

    Which, a coin decides. The second answer puts the target first if the sentence fits the order
    of the first one, and is at random otherwise.
    """
    number = {
        item.title: float(users.vectors.items[item.index, 0])
        for split in ("train", "validation")
        for episode in users.episodes(split)
        for item in episode.candidates
    }
    target = {
        tuple(sorted(item.title for item in e.candidates)): e.candidates[e.target].title
        for split in ("train", "validation")
        for e in users.episodes(split)
    }

    def reply(prompt):
        titles = shown_candidates(prompt)
        falls = coin(titles)
        if len(shown_history(prompt)) < 5:
            ranked = sorted(titles, key=number.__getitem__, reverse=bool(falls))
            return "\n".join(ranked)
        best = reasoning[FALLING if falls else RISING].replace("{n_candidates}", "10")
        if best in prompt:
            return target[tuple(sorted(titles))]
        seed = int(hashlib.sha256(prompt.encode()).hexdigest()[:8], 16)
        return "\n".join(titles[k] for k in np.random.default_rng(seed).permutation(10))

    return reply


def probability_of_right_sentence(tmp_path, kind, patterns, n_epochs, seed, **options):
    """Of users the agents have not met, in their second state."""
    users = MadeUpUsers(n_train=120, n_validation=120, n_test=1, seed=seed)
    model = kind(patterns=patterns, n_steps=2, policy_seed=seed, n_static_prompts=1, **options)
    model.encoder = HashEncoder()
    env = environment(planted(users, model.patterns.reasoning))
    run = trainer(tmp_path, env, max_epochs=n_epochs, limit_val_batches=0)
    run.fit(model, users)
    env.setup(run, model, "validate")
    episodes = users.episodes("validation")
    step = model.play(episodes, model.sampled, 1)[0]
    with torch.no_grad():
        probs = model.agents.log_probs(model.next_state(model.observe(step))).exp()
    right = [FALLING if coin([i.title for i in e.candidates]) else RISING for e in episodes]
    reasoning = model.patterns.names.index("reasoning")
    return float(probs[range(len(episodes)), reasoning, right].mean())


KINDS = pytest.mark.parametrize(
    ("kind", "options"), [(RPP, {}), (PPO, {"lr": 0.01})], ids=["RPP", "PPO-4"]
)


@KINDS
def test_before_learning_the_right_sentence_is_one_of_nine(tmp_path, patterns, kind, options):
    chance = probability_of_right_sentence(tmp_path, kind, patterns, 0, 0, **options)
    assert chance == pytest.approx(1 / 9, abs=0.03)


@KINDS
@pytest.mark.parametrize("seed", range(3))
def test_the_order_of_the_first_ranking_decides_the_second_prompt(
    tmp_path, patterns, kind, options, seed
):
    assert probability_of_right_sentence(tmp_path, kind, patterns, 30, seed, **options) >= 0.9


@KINDS
def test_the_mean_of_the_ranked_items_does_not_tell_it(tmp_path, patterns, kind, options):
    """Which of the two sentences is right stays a guess."""
    options = options | {"pooling": "mean"}
    found = probability_of_right_sentence(tmp_path, kind, patterns, 30, 0, **options)
    assert 0.3 < found < 0.65
