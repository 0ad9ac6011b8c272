"""Completing rankings, failures, counters, every decoding."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest
from helpers import prompts_for

from rpp.llms.base import ScriptedLanguageModel
from rpp.llms.cache import ReplyCache
from rpp.llms.huggingface import HuggingFaceLanguageModel
from rpp.prompts.compose import Prompt, identifier
from rpp.ranker import Ranker
from rpp.types import Episode, InputError, Item, LanguageModelError, arbitrary_order


def titles_of(ranking, episode):
    return [episode.candidates[k].title for k in ranking.order]


def displayed_otherwise(episode: Episode, shift: int) -> Episode:
    """The same candidates in another order; the target moves along."""
    n = len(episode.candidates)
    order = [(k * 3 + shift) % n for k in range(n)]
    return replace(
        episode,
        candidates=tuple(episode.candidates[k] for k in order),
        withheld=order.index(episode.target),
    )


def test_reply_is_completed_behind_what_it_names(tiny_episodes):
    episode = tiny_episodes[0]
    reply = f"1. {episode.candidates[4].title}\n2. Unknown\n3. {episode.candidates[1].title}"
    ranker = Ranker(ScriptedLanguageModel(reply))
    (ranking,) = ranker.rank(prompts_for([episode]), [episode])
    assert ranking.order[:2] == (4, 1)
    assert sorted(ranking.order) == list(range(10))
    assert (ranking.n_named, ranking.status, ranking.reply) == (2, "repaired", reply)
    assert ranker.counters.unmatched_lines == 1


def test_completion_knows_neither_display_nor_target(tiny_episodes):
    ranker = Ranker(ScriptedLanguageModel("I do not know"))
    for episode in tiny_episodes:
        shown = [displayed_otherwise(episode, shift) for shift in range(10)]
        targets = [replace(episode, withheld=k) for k in range(10)]
        orders = {
            tuple(titles_of(ranking, e))
            for some in (shown, targets)
            for ranking, e in zip(ranker.rank(prompts_for(some), some), some, strict=True)
        }
        assert len(orders) == 1


def test_completion_differs_between_users_and_seeds(tiny_episodes):
    same = [replace(tiny_episodes[0], user=k, user_id=f"u{k}") for k in range(200)]
    orders = [tuple(arbitrary_order(episode, 0)) for episode in same]
    assert len(set(orders)) > 190
    firsts = Counter(order[0] for order in orders)
    assert len(firsts) == 10
    assert max(firsts.values()) < 45  # 20 are expected
    assert arbitrary_order(same[0], 1) != arbitrary_order(same[0], 0)


def test_ties_are_broken_without_knowing_the_display(tiny_episodes):
    episode = tiny_episodes[3]
    shown = [displayed_otherwise(episode, shift) for shift in range(10)]
    ranker = Ranker(ScriptedLanguageModel(scorer=lambda *_: -1.0), "first_token")
    rankings = ranker.rank(prompts_for(shown), shown)
    assert len({tuple(titles_of(r, e)) for r, e in zip(rankings, shown, strict=True)}) == 1


def failing_for(*users):
    def reply(prompt):
        user = int(prompt.split("\n")[0].split()[1])
        if user in users:
            return LanguageModelError(f"no answer for {user}")
        return "\n".join(prompt.split("\n")[:0:-1])

    return reply


def test_failed_calls_are_failed_rankings_not_completions(tiny_episodes):
    ranker = Ranker(ScriptedLanguageModel(failing_for(2, 5)))
    rankings = ranker.rank(prompts_for(tiny_episodes), tiny_episodes)
    failed = [k for k, ranking in enumerate(rankings) if ranking.failed]
    assert failed == [2, 5]
    assert rankings[2].order == ()
    assert rankings[2].reply == "no answer for 2"
    assert ranker.counters.failed == 2
    assert ranker.counters.valid == 10


def test_failed_scores_are_failed_rankings(tiny_episodes):
    class Half(ScriptedLanguageModel):
        def score(self, prompts, continuations, response_prefixes=None):
            rows = super().score(prompts, continuations, response_prefixes)
            return [LanguageModelError("lost") if "user 3\n" in p else row
                    for p, row in zip(prompts, rows, strict=True)]  # fmt: skip

    for decoding in ("first_token", "likelihood", "constrained"):
        ranker = Ranker(Half(scorer=lambda _, text: -len(text)), decoding)
        answer = "identifiers" if decoding == "constrained" else "titles"
        rankings = ranker.rank(prompts_for(tiny_episodes, answer), tiny_episodes)
        assert [k for k, r in enumerate(rankings) if r.failed] == [3]


def test_all_failed_stops_the_run(tiny_episodes):
    ranker = Ranker(ScriptedLanguageModel(failing_for(*range(12))))
    with pytest.raises(LanguageModelError, match="none of 12 prompts: no answer for 0"):
        ranker.rank(prompts_for(tiny_episodes), tiny_episodes)
    assert ranker.counters.failed == 12
    (one,) = ranker.rank(prompts_for(tiny_episodes[:1]), tiny_episodes[:1])
    assert one.failed  # a single user proves nothing


def test_a_call_that_raises_stops_the_run_too(tiny_episodes):
    def refuse(prompt):
        raise LanguageModelError("connection refused")

    with pytest.raises(LanguageModelError, match="connection refused"):
        Ranker(ScriptedLanguageModel(refuse)).rank(prompts_for(tiny_episodes), tiny_episodes)


def test_counters_add_up(tiny_episodes):
    def reply(prompt):
        user, *titles = prompt.split("\n")
        n = int(user.split()[1])
        return "\n".join(titles[:10] if n % 3 == 0 else titles[:4] if n % 3 == 1 else ["?", "x"])

    prompts = prompts_for(tiny_episodes)
    prompts[0] = replace(prompts[0], n_dropped=2)
    ranker = Ranker(ScriptedLanguageModel(reply))
    assert set(ranker.counters.as_dict().values()) == {0}
    ranker.rank(prompts, tiny_episodes)
    once = ranker.counters
    assert (once.valid, once.repaired, once.unusable, once.failed) == (4, 4, 4, 0)
    assert (once.calls, once.cache_hits, once.shortened_histories) == (12, 0, 1)
    assert once.unmatched_lines == 4
    assert once.prompt_tokens > 0
    assert once.reply_tokens > 0
    assert once.seconds > 0
    ranker.rank(prompts, tiny_episodes)
    twice = ranker.counters
    assert (twice.calls, twice.cache_hits) == (12, 12)
    assert (twice.prompt_tokens, twice.reply_tokens) == (once.prompt_tokens, once.reply_tokens)
    assert (twice.valid, twice.unmatched_lines) == (8, 8)


def test_rankings_follow_the_users(tiny_episodes):
    ranker = Ranker(ScriptedLanguageModel(failing_for()))
    forwards = ranker.rank(prompts_for(tiny_episodes), tiny_episodes)
    turned = tiny_episodes[::-1]
    assert ranker.rank(prompts_for(turned), turned) == forwards[::-1]
    assert all(ranking.order == tuple(range(9, -1, -1)) for ranking in forwards)


def test_first_token_sorts_by_the_identifiers_scores(tiny_episodes):
    scores = {identifier(k): float((7 * k) % 10) for k in range(10)}
    ranker = Ranker(ScriptedLanguageModel(scorer=lambda _, text: scores[text]), "first_token")
    (ranking, _) = ranker.rank(prompts_for(tiny_episodes[:2]), tiny_episodes[:2])
    assert ranking.order == tuple(sorted(range(10), key=lambda k: -((7 * k) % 10)))
    assert ranking.status == "valid"
    assert ranker.display.answer == "identifiers"


def test_likelihood_divides_by_the_length_of_the_title():
    """Two titles of the same total: the longer one is the likelier per character."""
    items = (Item(0, "Up"), Item(1, "A Long Title"))
    episode = Episode(0, (Item(2, "Speed"),), items, 0)
    asked = []

    def scorer(prompt, text):
        asked.append((prompt, text))
        return -6.0

    ranker = Ranker(ScriptedLanguageModel(scorer=scorer), "likelihood", show_candidates=False)
    (ranking,) = ranker.rank([Prompt("P\n", ())], [episode])
    assert ranking.order == (1, 0)
    assert set(asked) == {("P\n1.", " Up"), ("P\n1.", " A Long Title")}
    assert "1. A Long Title (-0.462)" in ranking.reply  # -6 / 13
    assert not ranker.display.show_candidates


def test_likelihood_of_whole_titles():
    """Undivided, the line's end included: "Up" is not credited with "Up in the Air"."""
    items = (Item(0, "Up"), Item(1, "A Long Title"))
    episode = Episode(0, (Item(2, "Speed"),), items, 0)
    scores = {" Up\n": -6.0, " A Long Title\n": -6.5}
    llm = ScriptedLanguageModel(scorer=lambda _, text: scores[text])
    ranker = Ranker(llm, "likelihood", show_candidates=False, per_character=False)
    (ranking,) = ranker.rank([Prompt("P\n", ())], [episode])
    assert ranking.order == (0, 1)
    assert "1. Up (-6.000)" in ranking.reply


def test_likelihood_does_not_depend_on_the_display(tiny_episodes):
    episode = tiny_episodes[1]
    shown = [displayed_otherwise(episode, shift) for shift in range(10)]
    llm = ScriptedLanguageModel(scorer=lambda _, text: -float(sum(text.encode()) % 17))
    ranker = Ranker(llm, "likelihood", show_candidates=False)
    rankings = ranker.rank([Prompt("the same", ())] * 10, shown)
    assert len({tuple(titles_of(r, e)) for r, e in zip(rankings, shown, strict=True)}) == 1
    assert ranker.counters.calls == 1  # one prompt, one set of titles


def test_constrained_ranking_is_always_complete(tiny_episodes):
    ranker = Ranker(
        ScriptedLanguageModel(scorer=lambda _, text: float(ord(text[0]))), "constrained"
    )
    rankings = ranker.rank(prompts_for(tiny_episodes, "identifiers"), tiny_episodes)
    assert all(r.order == tuple(range(9, -1, -1)) and r.status == "valid" for r in rankings)


@pytest.mark.parametrize("decoding", ["generate", "constrained", "first_token"])
def test_candidates_are_hidden_for_likelihood_only(decoding):
    with pytest.raises(InputError, match="show_candidates to true"):
        Ranker(ScriptedLanguageModel(), decoding, show_candidates=False)


def test_model_without_probabilities_names_the_remedy(tiny_episodes):
    ranker = Ranker(ScriptedLanguageModel("x"), "first_token")
    with pytest.raises(InputError, match=r"use environment\.decoding: generate"):
        ranker.rank(prompts_for(tiny_episodes), tiny_episodes)


def test_fits_leaves_room_for_the_reply():
    ranker = Ranker(ScriptedLanguageModel(context=356))  # a free reply may take 256 of them
    assert ranker.fits("x" * 100)
    assert ranker.fits("x" * 399)  # 100 tokens of 4 letters
    assert not ranker.fits("x" * 400)
    scored = Ranker(ScriptedLanguageModel(context=164), "likelihood")  # a title takes at most 64
    assert scored.fits("x" * 399)
    assert not scored.fits("x" * 400)
    assert Ranker(ScriptedLanguageModel()).fits("x" * 100_000)


@pytest.mark.parametrize("decoding", ["generate", "constrained", "first_token", "likelihood"])
def test_every_decoding_with_a_real_network(decoding, tiny_llm_folder, tiny_episodes):
    llm = HuggingFaceLanguageModel(str(tiny_llm_folder), dtype="float32", max_new_tokens=8)
    ranker = Ranker(llm, decoding)
    episodes = tiny_episodes[:4]
    prompts = prompts_for(episodes, ranker.display.answer)
    together = ranker.rank(prompts, episodes)
    assert all(sorted(ranking.order) == list(range(10)) for ranking in together)
    if decoding != "generate":
        assert all(ranking.status == "valid" for ranking in together)
        assert len({ranking.order for ranking in together}) > 1
    apart = Ranker(llm, decoding)
    for prompt, episode, ranking in zip(prompts, episodes, together, strict=True):
        (own,) = apart.rank([prompt], [episode])
        assert replace(ranking, scores=()) == replace(own, scores=())
        assert ranking.scores == pytest.approx(own.scores, abs=1e-5)


def test_an_empty_cache_is_used_all_the_same(tmp_path, tiny_episodes):
    """An empty cache has length 0 and is therefore false; it was once replaced by one in memory."""
    episodes = tiny_episodes[:3]
    llm = ScriptedLanguageModel(reply="1. nobody")
    for calls in (3, 0):
        ranker = Ranker(llm, cache=ReplyCache(tmp_path))
        ranker.rank(prompts_for(episodes), episodes)
        assert ranker.counters.calls == calls
        ranker.llm.close()
