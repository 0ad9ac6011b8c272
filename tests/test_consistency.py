"""Permutation self-consistency: Kemeny's ranking by hand and by brute force, and position bias."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations, permutations
from zlib import crc32

import numpy as np
import pytest
from pipeline import PATTERNS, MadeUpUsers

from rpp.comparison.base import Task
from rpp.comparison.consistency import SelfConsistency, aggregate, kemeny, preferences
from rpp.data.datamodule import shuffle_candidates
from rpp.llms.base import ScriptedLanguageModel
from rpp.llms.controls import SKILL_LESS, answers_at_random, copies_the_list, shown_candidates
from rpp.metrics import METRICS, chance, mean_interval, paired_difference, target_ranks
from rpp.prompts.patterns import load_patterns
from rpp.prompts.static import only_prompt
from rpp.ranker import Ranker
from rpp.types import (
    InputError,
    LanguageModelError,
    Ranking,
    failed_ranking,
    final_scoring,
    status_of,
)

SENTENCES = load_patterns(PATTERNS)


def full(*orders):
    return preferences([(order, len(order)) for order in orders], len(orders[0]))


def test_preferences_by_hand():
    counts = preferences([((2, 0, 1, 3), 4), ((1, 0, 2, 3), 2), ((3, 2, 1, 0), 0)], 4)
    assert counts.tolist() == [
        [0, 1, 1, 2],  # 0 stands before 1 in the first answer, before 2 in the second
        [1, 0, 1, 2],
        [1, 1, 0, 1],  # nothing is known of 2 and 3 by the second answer, of nobody by the third
        [0, 0, 0, 0],
    ]


def test_kemeny_by_hand():
    # 0 before 1 and 1 before 2 for two of three; 0 before 2 for two of three: no contradiction
    assert kemeny(full((0, 1, 2), (0, 1, 2), (2, 1, 0))) == [0, 1, 2]
    # a circle, of which the weakest link is broken: 5 say 0 < 1, 4 say 1 < 2, 3 say 2 < 0
    assert kemeny(np.array([[0, 5, 0], [0, 0, 4], [3, 0, 0]])) == [0, 1, 2]
    assert kemeny(np.array([[0, 3, 0], [0, 0, 5], [4, 0, 0]])) == [1, 2, 0]
    assert kemeny(np.array([[0, 1], [2, 0]])) == [1, 0]
    assert kemeny(np.array([[0, 1], [1, 0]])) == [0, 1]
    assert kemeny(np.zeros((1, 1), dtype=int)) == [0]


def contradicted(order, counts):
    return sum(counts[later, earlier] for earlier, later in combinations(order, 2))


@pytest.mark.parametrize("seed", range(10))
def test_kemeny_is_optimal(seed):
    """Against all 24 orders of four, and against Kendall's distance to the rankings."""
    rng = np.random.default_rng(seed)
    orders = [tuple(map(int, rng.permutation(4))) for _ in range(5)]
    counts = full(*orders)
    best = min(contradicted(order, counts) for order in permutations(range(4)))
    found = kemeny(counts)
    assert contradicted(found, counts) == best
    tau = sum(
        (o.index(a) < o.index(b)) != (found.index(a) < found.index(b))
        for o in orders for a in range(4) for b in range(a)
    )  # fmt: skip
    assert tau == best


def test_twenty_candidates_are_no_trouble():
    rng = np.random.default_rng(0)
    hidden = rng.permutation(20)
    noisy = [hidden[np.argsort(np.arange(20) + rng.normal(size=20) * 4)] for _ in range(15)]
    counts = full(*[tuple(map(int, order)) for order in noisy])
    found = kemeny(counts)
    cost = contradicted(found, counts)
    assert cost <= min(contradicted(order, counts) for order in noisy)
    for k in range(19):  # no exchange of neighbours is better
        turned = [*found[:k], found[k + 1], found[k], *found[k + 2 :]]
        assert cost <= contradicted(turned, counts)


# The method


@pytest.fixture(scope="module")
def users():
    return MadeUpUsers(n_train=1, n_validation=1, n_test=100, seed=1)


def task(users, reply="", **options):
    return Task(users, SENTENCES, Ranker(ScriptedLanguageModel(reply=reply), **options), n_steps=5)


def metric_of(rankings, episodes, name="ndcg@10"):
    with final_scoring():
        return METRICS[name](target_ranks(rankings, episodes))


def answer(order, n_named=None):
    n_named = len(order) if n_named is None else n_named
    return Ranking(order, n_named, status_of(n_named, len(order)), "text")


def test_answers_are_read_in_the_order_that_was_shown(tiny_episodes):
    episode = tiny_episodes[0]
    m = len(episode.candidates)
    back = episode.candidates[::-1]
    turned = replace(episode, candidates=back, withheld=m - 1 - episode.withheld)
    forward, backward = tuple(range(m)), tuple(reversed(range(m)))
    both = aggregate(episode, [episode, turned], [answer(forward), answer(backward)], seed=0)
    assert both.order == forward  # the last of the turned list is the first of the other
    assert (both.n_named, both.status) == (m, "valid")
    partly = aggregate(episode, [episode, turned], [answer(forward, 2), answer(forward, 1)], seed=0)
    assert set(partly.order[:3]) == {0, 1, m - 1}
    assert partly.order.index(0) < partly.order.index(1)
    assert (partly.n_named, partly.status) == (3, "repaired")


def test_failures_are_left_out(tiny_episodes):
    episode = tiny_episodes[0]
    order = tuple(reversed(range(len(episode.candidates))))
    lost = failed_ranking("connection lost")
    assert aggregate(episode, [episode] * 2, [lost, answer(order)], seed=0).order == order
    nobody = aggregate(episode, [episode] * 2, [lost, lost], seed=0)
    assert nobody.failed
    assert nobody.reply == "connection lost"


def test_equally_good_rankings_know_nothing_of_the_displayed_order(users):
    """Nobody is named: the order depends on user and seed, and differs between users."""
    for seed in (0, 1):
        found = []
        for episode in users.episodes("test")[:20]:
            (other,) = shuffle_candidates([episode], 7, 7)
            titles = []
            for shown in (episode, other):
                nobody = answer(tuple(range(10)), 0)
                ranking = aggregate(shown, [shown] * 2, [nobody] * 2, seed)
                assert ranking.status == "unusable"
                titles.append([shown.candidates[k].title for k in ranking.order])
            assert titles[0] == titles[1]
            found.append(ranking.order)
        assert len(set(found)) == 20


def test_every_order_is_asked_once_the_displayed_one_among_them(users):
    asked = []
    given = task(users, lambda p: asked.append(tuple(shown_candidates(p))) or answers_at_random(p))
    test = users.episodes("test")[:8]
    for method, n_orders in ((SelfConsistency(), 5), (SelfConsistency(3), 3)):
        asked.clear()
        before = given.ranker.counters
        rankings = method.learn(replace(given, seed=n_orders))(test)
        after = given.ranker.counters
        n_asked = after.calls + after.cache_hits - before.calls - before.cache_hits
        assert n_asked == 8 * n_orders == method.max_calls(given, 8)
        assert [r.status for r in rankings] == ["valid"] * 8
        for episode in test if n_orders == 5 else ():
            titles = tuple(item.title for item in episode.candidates)
            orders = [shown for shown in asked if set(shown) == set(titles)]
            assert len(set(orders)) == n_orders
            assert titles in orders


def test_reordering_users_reorders_the_output(users):
    test = users.episodes("test")[:10]
    ranks = SelfConsistency().learn(task(users, answers_at_random))
    assert [r.order for r in ranks(test[::-1])] == [r.order for r in ranks(test)][::-1]


def test_one_order_is_the_manual_prompt(users):
    test = users.episodes("test")[:10]
    given = task(users, answers_at_random)
    manual = given.manual
    alone = manual.step_static(test, [only_prompt(manual.patterns)]).rankings
    assert [r.order for r in SelfConsistency(1).learn(given)(test)] == [r.order for r in alone]


@pytest.mark.parametrize("reply", SKILL_LESS, ids=lambda f: f.__name__)
def test_no_skill_scores_chance(users, reply):
    """Above all the one that copies the list, of which orders average nothing but its bias."""
    test = users.episodes("test")
    rankings = SelfConsistency(3).learn(task(users, reply))(test)
    for name in ("ndcg@1", "ndcg@10"):
        interval = mean_interval(metric_of(rankings, test, name), confidence=0.999)
        assert interval.low <= chance(name, 10) <= interval.high, interval


def test_orders_undo_a_position_bias(users):
    """A ranker that knows what users like but prefers what stands first."""
    with final_scoring():
        liked = {frozenset(i.title for i in e.candidates): e.candidates[e.target].title
                 for e in users.episodes("test")}  # fmt: skip

    def reply(prompt):
        shown = shown_candidates(prompt)
        taste = {title: crc32(title.encode()) % 100 / 100 for title in shown}
        taste[liked[frozenset(shown)]] = 1
        order = np.argsort([0.2 * k - taste[title] for k, title in enumerate(shown)])
        return "\n".join(shown[k] for k in order)

    test = users.episodes("test")[:80]
    one = metric_of(SelfConsistency(1).learn(task(users, reply))(test), test)
    many = metric_of(SelfConsistency(5).learn(task(users, reply))(test), test)
    assert paired_difference(many, one).low > 0


def test_a_ranker_without_the_list_lists_here(users):
    """Same model, cache and counters; the ranker handed in goes on not showing candidates."""
    seen = []

    def scorer(prompt, title):
        seen.append(prompt)
        return float(-shown_candidates(prompt).index(title.strip()))

    llm = ScriptedLanguageModel(scorer=scorer)
    ranker = Ranker(llm, "likelihood", show_candidates=False, per_character=False)
    test = users.episodes("test")[:6]
    rankings = SelfConsistency(3).learn(Task(users, SENTENCES, ranker, n_steps=1))(test)
    assert all(len(shown_candidates(prompt)) == 10 for prompt in seen)
    assert ranker.display.show_candidates is False
    assert ranker.counters.calls == 18
    assert ranker.counters.valid == 18
    assert [r.status for r in rankings] == ["valid"] * 6


def test_failed_orders_do_not_fail_a_user(users):
    def reply(prompt):
        shown = shown_candidates(prompt)
        if shown[0] > shown[1]:
            return LanguageModelError("connection lost")
        return copies_the_list(prompt)

    test = users.episodes("test")[:30]
    rankings = SelfConsistency(12).learn(task(users, reply))(test)
    assert not any(r.failed for r in rankings)


def test_bad_input(users):
    with pytest.raises(InputError, match="over 0 orders"):
        SelfConsistency(0)
    bare = replace(task(users), patterns=replace(SENTENCES, manual=None))
    with pytest.raises(InputError, match="add a section `manual`"):
        SelfConsistency().learn(bare)
