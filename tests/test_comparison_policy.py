"""Learned policies in the comparison: fitted once, permuted, refined."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from comparison_setup import GOOD, PATTERNS, compare, knows, learner, policy, scored, task
from comparison_setup import users as users
from pipeline import PATTERNS as PATTERNS_FILE
from pipeline import HashEncoder

from rpp.comparison.policy import PermutedPrompts, Policy
from rpp.comparison.references import RandomPolicy
from rpp.comparison.report import make_rows
from rpp.evaluation import n_differing, step_permuted
from rpp.learners.rpp import RPP
from rpp.llms.controls import copies_the_list, shown_candidates
from rpp.prompts.refine import Refiner
from rpp.types import InputError


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
