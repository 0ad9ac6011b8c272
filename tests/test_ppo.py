"""PPO-1 and PPO-4: the agent, what a batch teaches it, and that it finds what is planted."""

from __future__ import annotations

import hashlib
import math
from functools import partial

import numpy as np
import pytest
import torch
from pipeline import PATTERNS, HashEncoder, MadeUpUsers, environment, trainer
from test_controls import ROWS
from test_learning import planted

from rpp.agents.joint import JointActorCritic, draw_prompts
from rpp.learners.ppo import PPO
from rpp.llms.controls import answers_at_random, copies_the_list, shown_candidates
from rpp.metrics import METRICS, chance, mean_interval
from rpp.prompts.patterns import load_patterns
from rpp.types import InputError, LanguageModelError

N_ACTIONS = (3, 2, 5)
SENTENCES = load_patterns(PATTERNS)
KINDS = pytest.mark.parametrize("n_prompts", [None, 32], ids=["PPO-4", "PPO-1"])


def module(**options):
    made = PPO(patterns=PATTERNS, **options)
    made.encoder = HashEncoder()
    return made


# The agent


@pytest.fixture
def agent():
    torch.manual_seed(0)
    made = JointActorCritic(N_ACTIONS, state_dim=8, hidden_dim=16)
    for head in made.heads:  # far from uniform
        torch.nn.init.normal_(head.weight)
    return made


@pytest.mark.parametrize("drawn", [False, True])
def test_the_policy_is_the_product_of_its_heads(agent, drawn):
    state = torch.randn(6, 8)
    decision = agent(state, torch.rand(6, 3) if drawn else None)
    log_probs = agent.log_probs(state)
    assert log_probs.shape == (6, 3, 5)
    assert (decision.actions < torch.tensor(N_ACTIONS)).all()
    assert decision.entropy.shape == (6, 3)
    assert decision.value.shape == (6, 1)
    for user in range(6):
        chosen = [log_probs[user, k, decision.choices[user, k]].item() for k in range(3)]
        assert decision.log_prob[user].tolist() == pytest.approx([sum(chosen)])


def test_what_was_chosen_is_judged_alike(agent):
    state = torch.randn(6, 8)
    decision = agent(state, torch.rand(6, 3), horizon=2.5)
    judged = agent(state, horizon=2.5, choices=decision.choices)
    for name in ("actions", "choices", "log_prob", "entropy", "value"):
        assert torch.equal(getattr(judged, name), getattr(decision, name)), name
    assert torch.allclose(agent(state).value * 2.5, decision.value)


def test_heads_share_the_trunk_and_the_critic_shares_nothing(agent):
    def moved():
        names = [n for n, p in agent.named_parameters() if p.grad is not None and p.grad.any()]
        agent.zero_grad(set_to_none=True)
        return {name.rsplit(".", 1)[0] for name in names}

    agent.log_probs(torch.randn(4, 8))[:, 1, 0].sum().backward()
    assert moved() == {"trunk.0", "heads.1"}
    agent(torch.randn(4, 8)).value.sum().backward()
    assert moved() == {"critic.0", "critic.2"}


def test_one_head_chooses_whole_prompts():
    prompts = draw_prompts(N_ACTIONS, 8, seed=0)
    agent = JointActorCritic(N_ACTIONS, 8, 16, prompts)
    decision = agent(torch.randn(50, 8), torch.rand(50, 3))
    assert decision.choices.shape == decision.entropy.shape == (50, 1)
    assert decision.actions.tolist() == [prompts[k].tolist() for k in decision.choices[:, 0]]
    assert len({tuple(row) for row in decision.actions.tolist()}) > 4
    assert decision.entropy.mean().item() == pytest.approx(math.log(8), abs=0.01)
    assert torch.equal(agent.state_dict()["prompts"], prompts)  # goes with the checkpoint


def test_drawn_prompts_are_different_seeded_and_spread():
    prompts = draw_prompts(N_ACTIONS, 12, seed=0)
    assert prompts.shape == (12, 3)
    assert len({tuple(row) for row in prompts.tolist()}) == 12
    assert torch.equal(draw_prompts(N_ACTIONS, 12, seed=0), prompts)
    assert not torch.equal(draw_prompts(N_ACTIONS, 12, seed=1), prompts)
    every = draw_prompts(N_ACTIONS, 99, seed=0)
    assert sorted(map(tuple, every.tolist())) == list(np.ndindex(*N_ACTIONS))


# What a batch teaches


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_prompts": 1}, "n_prompts is 1"),
        ({"n_update_epochs": 0}, "n_update_epochs is 0"),
        ({"clip_range": 0.0}, "clip_range is 0"),
    ],
)
def test_settings_that_teach_nothing_are_refused(options, message):
    with pytest.raises(InputError, match=message):
        module(**options)


@KINDS
def test_an_update_begins_with_the_policy_that_played_and_reaches_everything(tmp_path, n_prompts):
    """States made anew from what was recorded are those that were played: the first ratio is 1."""
    users = MadeUpUsers(n_train=40, n_validation=1, n_test=1, batch_size=20)
    model = module(n_steps=3, n_prompts=n_prompts, n_update_epochs=2, n_static_prompts=1)
    update, ratios = model._update, []

    def watched(played, returns, advantage):
        for now, then in zip(model._decide_again(played), played, strict=True):
            ratios.append((now.log_prob - then.decision.log_prob).exp().detach())
        update(played, returns, advantage)

    model._update = watched
    run = trainer(tmp_path, environment(answers_at_random), max_epochs=1, limit_val_batches=0)
    run.fit(model, users)
    first, second, *_ = torch.cat(ratios).split(3 * 20)
    assert torch.allclose(first, torch.ones_like(first), atol=1e-5)
    assert not torch.allclose(second, torch.ones_like(second), atol=1e-5)
    trained = {id(p) for group in run.optimizers[0].param_groups for p in group["params"]}
    assert trained == {id(p) for p in model.parameters()}
    for name, parameter in model.named_parameters():
        assert parameter.grad.abs().sum() > 0, name
    assert [len(step.prompts) for step in model.train_steps] == [20] * 2 * 3  # none asked twice
    heads = SENTENCES.names if n_prompts is None else ("prompt",)
    expected = {"loss/actor", "loss/critic", *(f"entropy/{name}" for name in heads)}
    logged = {name for name in run.callback_metrics if name.startswith(("loss", "entropy"))}
    assert logged == expected
    drift = [float(run.callback_metrics[f"train/{n}"]) for n in ("approx_kl", "clip_fraction")]
    assert drift[0] > 0
    assert 0 <= drift[1] <= 1
    assert float(run.callback_metrics["train/explained_variance"]) <= 1


def test_a_failed_call_teaches_nothing_and_spoils_nothing(tmp_path):
    def flaky(prompt):
        if int(hashlib.sha256(prompt.encode()).hexdigest(), 16) % 5 == 0:
            return LanguageModelError("connection lost")
        return copies_the_list(prompt)

    users = MadeUpUsers(n_train=60, n_validation=20, n_test=1)
    model = module(n_steps=3)
    run = trainer(tmp_path, environment(flaky), max_epochs=3, limit_val_batches=0)
    run.fit(model, users)
    assert any(ranking.failed for step in model.train_steps for ranking in step.rankings)
    assert all(parameter.isfinite().all() for parameter in model.parameters())
    assert run.callback_metrics["loss/critic"].isfinite()


# What is planted is found, what is not there is not


def learnt(tmp_path, users, reply, n_epochs, **options):
    """Policy of every training user in their first state, ``(B, H, A)``."""
    model = module(n_steps=1, n_static_prompts=1, **options)
    # every round is one batch of all users
    run = trainer(tmp_path, environment(reply), max_epochs=n_epochs, limit_val_batches=0)
    run.fit(model, users)
    state = model.first_state(users.episodes("train"))
    return model.agents.log_probs(state).exp().detach()


@pytest.mark.parametrize("seed", range(3))
def test_four_heads_find_what_is_best_for_each_user(tmp_path, seed):
    """Two kinds of users, told apart by their collaborative vector alone."""
    users = MadeUpUsers(n_train=120, n_validation=1, n_test=1, seed=seed)

    def best_of(user):
        return 2 if users.vectors.users[user, 0] > 0 else 6

    probs = learnt(tmp_path, users, planted(users, best_of), 40, policy_seed=seed, lr=0.01)
    best = [best_of(episode.user) for episode in users.episodes("train")]
    reasoning = probs[:, SENTENCES.names.index("reasoning")]
    assert float(reasoning[range(120), best].mean()) >= 0.8


def whole_prompt(users, actions):
    """A ranker that puts the target first if role, reasoning and format are all as planted."""
    chosen = SENTENCES.chosen(actions)
    sentences = [
        SENTENCES.describe(part, chosen[part]).replace("{n_candidates}", "10")
        for part in ("role", "reasoning", "format")
    ]
    target = {
        tuple(sorted(i.title for i in e.candidates)): e.candidates[e.target].title
        for split in ("train", "validation")
        for e in users.episodes(split)
    }

    def reply(prompt):
        if all(sentence in prompt for sentence in sentences):
            return target[tuple(sorted(shown_candidates(prompt)))]
        return answers_at_random(prompt)

    return reply


@pytest.mark.parametrize("seed", range(3))
def test_one_head_finds_the_best_whole_prompt(tmp_path, seed):
    users = MadeUpUsers(n_train=120, n_validation=1, n_test=1, seed=seed)
    prompts = draw_prompts(SENTENCES.n_actions, 32, seed)
    history = SENTENCES.names.index("history")
    alike = [k for k, row in enumerate(prompts.tolist())
             if row[:history] + row[history + 1 :]
             == prompts[5].tolist()[:history] + prompts[5].tolist()[history + 1 :]]  # fmt: skip
    learn = partial(learnt, tmp_path, users, whole_prompt(users, prompts[5].tolist()),
                    n_prompts=32, policy_seed=seed, lr=0.01)  # fmt: skip
    assert float(learn(0)[:, 0, alike].sum(-1).mean()) < 0.2
    assert float(learn(20)[:, 0, alike].sum(-1).mean()) >= 0.8


@KINDS
def test_no_skill_scores_chance(tmp_path, n_prompts):
    users = MadeUpUsers(n_train=60, n_validation=40, n_test=500, batch_size=100)
    model = module(n_steps=3, n_prompts=n_prompts, n_static_prompts=4)
    run = trainer(tmp_path, environment(answers_at_random), max_epochs=2)
    run.fit(model, users)
    run.test(model, users, verbose=False)
    assert model.test_results.ranks.keys() == {row.replace("RPP", model.title) for row in ROWS}
    for row, ranks in model.test_results.ranks.items():
        for name in ("ndcg@1", "ndcg@5", "ndcg@10"):
            values = METRICS[name](ranks)
            assert len(values) == 500
            interval = mean_interval(values, confidence=0.999)
            assert interval.low <= chance(name, 10) <= interval.high, (row, name, interval)
