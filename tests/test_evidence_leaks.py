"""Evidence and the target: no recommender that is told of in a prompt can know it."""

from __future__ import annotations

import re
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from evidence_setup import AllAlike, AtRandom, ByPlace, Fitted, IsTheTarget
from pipeline import MadeUpUsers

from rpp.baselines.arbitrary import Arbitrary
from rpp.baselines.base import TrainingData, validation_ndcg
from rpp.baselines.evidence import RecommenderEvidence, blinded, read_fitting_data
from rpp.baselines.factorisation import LightGCN
from rpp.data.datamodule import shuffle_candidates
from rpp.data.episodes import load_episodes
from rpp.data.lightgcn import LightGCNSettings
from rpp.llms.base import ScriptedLanguageModel
from rpp.llms.controls import copies_the_list
from rpp.metrics import chance_interval, ndcg, target_ranks
from rpp.prompts.evidence import EvidencePattern, EvidenceSource
from rpp.prompts.patterns import load_patterns
from rpp.ranker import Ranker
from rpp.rollout import Environment
from rpp.types import SPLITS, Episode, InputError, TargetAccessError, final_scoring

FILE = "conf/patterns/movies.yaml"
USERS, ITEMS = np.repeat(np.arange(4), 3), np.arange(12)


def source(kind, **arguments):
    return EvidenceSource("See {titles}.", f"{kind.__module__}.{kind.__qualname__}", arguments)


def evidence(*kinds, data=None, **arguments):
    """Evidence by recommenders, each called by its name in tables."""
    sources = {kind.name: source(kind, **arguments) for kind in kinds}
    pattern = EvidencePattern(sources, ({}, *({name: 1} for name in sources)))
    return RecommenderEvidence(pattern, data or made_up())


def made_up(users=USERS, items=ITEMS, folder=None):
    titles = tuple(f"item {k}" for k in range(400))
    return TrainingData(folder, users, items, 1000, titles, (), "made up")


@pytest.fixture
def folder(prepared_folder, tmp_path):
    """A prepared folder that a test may write to."""
    return shutil.copytree(prepared_folder, tmp_path / "custom")


# What recommenders are fitted to


def test_no_target_is_among_the_interactions_learnt_from(folder):
    data = read_fitting_data(folder)
    pairs = set(zip(data.users.tolist(), data.items.tolist(), strict=True))
    checked = evidence(AllAlike, data=data)
    users = set()
    for split in SPLITS:
        episodes = load_episodes(folder, split)
        with final_scoring():
            targets = {(e.user, e.candidates[e.target].index) for e in episodes}
        assert not targets & pairs
        checked.check(episodes)
        users |= {e.user for e in episodes}
    assert not users & {e.user for e in data.validation}  # settings are chosen on others
    assert data.validation
    for episode in data.validation:
        own = {item for user, item in pairs if user == episode.user}
        assert {item.index for item in episode.history} == own
        assert not own & {item.index for item in episode.candidates}


@pytest.mark.parametrize("split", SPLITS)
def test_the_guard_refuses_a_fitted_target_without_reading_it(folder, split):
    """The interactions of one user's target stand among those learnt from."""
    data = read_fitting_data(folder)
    episodes = load_episodes(folder, split)
    leaked = episodes[3]
    with final_scoring():
        target = leaked.candidates[leaked.target].index
    at = np.searchsorted(data.users, leaked.user + 1)
    fitted = replace(
        data, users=np.insert(data.users, at, leaked.user), items=np.insert(data.items, at, target)
    )
    with pytest.raises(TargetAccessError, match=f"interaction of user {leaked.user_id} with the"):
        evidence(Fitted, data=fitted).check(episodes)
    # without its users, as in tuning, nothing of them is known
    evidence(Fitted, data=fitted.without({leaked.user})).check(episodes)


def test_data_without_users_have_none_of_their_interactions(folder):
    data = TrainingData.read(folder)
    part = data.without({1, 2})
    assert not {1, 2} & set(part.users.tolist())
    assert len(part.users) == int((~np.isin(data.users, [1, 2])).sum()) < len(data.users)
    assert part.left_out == {1, 2}
    assert len({data.fingerprint, part.fingerprint, data.without({1}).fingerprint}) == 3
    with pytest.raises(InputError, match="no users left to learn from"):
        data.without(set(data.users.tolist()))


def test_lightgcn_of_a_part_is_trained_for_it(folder, monkeypatch):
    """The vectors of the folder know the users who are left out."""
    monkeypatch.setattr("rpp.baselines.factorisation.load_or_train", None)  # would raise
    data = TrainingData.read(folder).without({0, 1})
    model = LightGCN(LightGCNSettings(dim=8, n_epochs=1))
    model.fit_to(replace(data, artifacts="part"))
    assert (folder / "part" / "lightgcn.safetensors").is_file()
    assert model.score(load_episodes(folder, "train")).shape[1] == 10


def test_nothing_can_be_chosen_on_nobody():
    with pytest.raises(InputError, match="no user to choose them on"):
        validation_ndcg(lambda _: torch.zeros(0, 10), [])


# What recommenders are asked about


@pytest.mark.parametrize("split", SPLITS)
def test_a_source_that_is_the_target_is_refused(tiny_episodes, split):
    """Not only at test: whoever looks the target up for evidence would train on it."""
    episodes = [replace(episode, split=split) for episode in tiny_episodes]
    with pytest.raises(TargetAccessError, match="the test target of user u0 was read"):
        evidence(IsTheTarget).orders(IsTheTarget.name, episodes)


def test_blinded_episodes_tell_neither_order_nor_target(tiny_episodes):
    for episode in tiny_episodes:
        for at in range(10):
            other = replace(
                episode, withheld=at, candidates=episode.candidates[at:] + episode.candidates[:at]
            )
            assert blinded(other) == blinded(episode)


@pytest.mark.parametrize("kind", [AllAlike, ByPlace, AtRandom])
def test_orders_depend_on_neither_display_nor_target(tiny_episodes, kind):
    """Ties included."""
    orders = evidence(kind).orders(kind.name, tiny_episodes)
    turned = [
        replace(e, candidates=e.candidates[::-1], withheld=(e.withheld + 4) % 10)
        for e in tiny_episodes
    ]
    again = evidence(kind).orders(kind.name, turned)
    assert [tuple(9 - k for k in order) for order in again] == orders
    assert len({order[0] for order in orders}) > 3


def copies_the_evidence(prompt):
    """What the evidence names, then the list as it was shown."""
    named = re.search(r"See (.+)\.$", prompt, flags=re.MULTILINE)
    return f"1. {named[1]}\n" + copies_the_list(prompt) if named else copies_the_list(prompt)


def named_first(kind, reply):
    """NDCG@1 of a ranker that gets one candidate as evidence; its mean over 400 test users."""
    users = MadeUpUsers(1, 1, 400)
    made = evidence(kind, data=made_up())
    patterns = replace(
        load_patterns(FILE), evidence=EvidencePattern({kind.name: source(kind)}, ({kind.name: 1},))
    ).learning(["role"])
    ranker = Ranker(ScriptedLanguageModel(reply=reply), "generate")
    test = users.episodes("test")
    step = Environment(patterns, ranker, evidence=made).step(
        test, torch.zeros(len(test), 1, dtype=torch.long), [5] * len(test)
    )
    assert all("See Picture" in prompt.text for prompt in step.prompts)
    with final_scoring():
        return float(ndcg(target_ranks(step.rankings, test), 10).mean())


@pytest.mark.parametrize("kind", [Arbitrary, AtRandom, AllAlike, ByPlace])
@pytest.mark.parametrize("reply", [copies_the_list, copies_the_evidence])
def test_rankers_without_skill_stay_at_chance_with_evidence(kind, reply):
    low, high = chance_interval("ndcg@10", 10, 400, 0.999)
    assert low <= named_first(kind, reply) <= high


def test_a_fitted_target_would_show(tiny_episodes):
    """What the guard is for: a recommender that was fitted on targets ranks them first."""
    episodes = [replace(e, split="test") for e in tiny_episodes]
    users, items = (
        np.array(column)
        for column in zip(
            *[(e.user, e.candidates[e.withheld].index) for e in episodes], strict=True
        )
    )
    leaky = evidence(Fitted, data=made_up(users, items))
    firsts = [order[0] for order in leaky.orders(Fitted.name, episodes)]
    assert firsts == [e.withheld for e in episodes]
    with pytest.raises(TargetAccessError):
        leaky.check(episodes)


# Computed once


def test_a_user_is_scored_once(tiny_episodes, monkeypatch):
    """For any number of prompts, epochs and displayed orders."""
    monkeypatch.setattr(AtRandom, "n_scored", 0)
    made = evidence(AtRandom)
    first = made.orders(AtRandom.name, [*tiny_episodes, *tiny_episodes])
    assert AtRandom.n_scored == 12
    shuffled = shuffle_candidates(tiny_episodes, seed=1, epoch=2)
    later = made.orders(AtRandom.name, shuffled)
    assert AtRandom.n_scored == 12
    for a, before, b, after in zip(tiny_episodes, first, shuffled, later, strict=False):
        assert [a.candidates[k] for k in before] == [b.candidates[k] for k in after]
    longer = replace(tiny_episodes[0], history=tiny_episodes[0].history[1:])
    made.orders(AtRandom.name, [longer])
    assert AtRandom.n_scored == 13  # another history is another request


def test_orders_agree_with_the_recommender(folder):
    """As in the comparison, for users of the data set and for others."""
    test = load_episodes(folder, "test")
    made = RecommenderEvidence.read(
        load_patterns("conf/patterns/movies_evidence.yaml").evidence, folder
    )
    for name, recommender in made.recommenders.items():
        orders = made.orders(name, test)
        scores = recommender.score(test).gather(1, torch.tensor(orders))
        assert bool((scores.diff(dim=1) <= 1e-12).all())
    stranger = Episode(10**6, test[0].history, test[0].candidates[:4], 0, user_id="new")
    assert [sorted(order) for order in made.orders("EASE", [stranger, test[0]])] == [
        [0, 1, 2, 3], list(range(10)),
    ]  # fmt: skip


def test_z_scores_are_those_of_the_order(tiny_episodes):
    """Among the candidates, whatever the display; equal scores are all 0."""
    made = evidence(AtRandom)
    (order,) = made.orders(AtRandom.name, tiny_episodes[:1])
    (told,) = made.z_scores(AtRandom.name, tiny_episodes[:1])
    scores = AtRandom().learn(made.data)(tiny_episodes[:1])[0].numpy()[list(order)]
    assert tuple(told) == order
    assert list(told.values()) == pytest.approx((scores - scores.mean()) / scores.std())
    (shuffled,) = made.z_scores(AtRandom.name, shuffle_candidates(tiny_episodes[:1], 1, 2))
    assert list(shuffled.values()) == list(told.values())
    (even,) = evidence(AllAlike).z_scores(AllAlike.name, tiny_episodes[:1])
    assert list(even.values()) == [0.0] * 10


def test_two_settings_of_one_recommender_keep_what_they_learnt(folder):
    data = read_fitting_data(folder)
    pattern = EvidencePattern(
        {
            str(each): EvidenceSource(
                "{titles}", "rpp.baselines.neighbours.EASE",
                {"regularisations": [each], "lengths": [0]},
            )
            for each in (1.0, 900.0)
        },
        ({},),
    )  # fmt: skip
    made = RecommenderEvidence(pattern, data)
    episodes = load_episodes(folder, "train")
    assert made.orders("1.0", episodes) != made.orders("900.0", episodes)
    assert len(list((folder / "baselines").glob("evidence-*/ease.safetensors"))) == 2


def test_the_fingerprint_knows_recommenders_arguments_and_data():
    prints = {
        evidence(AtRandom).fingerprint,
        evidence(AtRandom, seed=1).fingerprint,
        evidence(AllAlike).fingerprint,
        evidence(AtRandom, data=replace(made_up(), fingerprint="others")).fingerprint,
    }
    assert len(prints) == 4
    assert evidence(AtRandom).fingerprint == evidence(AtRandom, seed=0).fingerprint


@pytest.mark.parametrize(
    ("class_path", "arguments"),
    [
        ("rpp.baselines.neighbours.Nearest", {}),
        ("rpp.learners.rpp.RPP", {}),
        ("rpp.baselines.neighbours.EASE", {"regularisation": 3}),
    ],
    ids=["unknown", "no recommender", "unknown argument"],
)
def test_what_is_no_recommender_is_refused(class_path, arguments):
    pattern = EvidencePattern({"x": EvidenceSource("{titles}", class_path, arguments)}, ({},))
    with pytest.raises(InputError, match=f"evidence by {class_path} is not possible"):
        RecommenderEvidence(pattern, made_up())
