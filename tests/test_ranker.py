"""Reading replies, completing rankings, failures, counters, every decoding."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest

from rpp.llms.base import LanguageModelError, ScriptedLanguageModel
from rpp.llms.cache import ReplyCache
from rpp.llms.huggingface import HuggingFaceLanguageModel
from rpp.prompts.compose import Prompt, identifier
from rpp.ranker import Ranker, arbitrary_order, parse_reply
from rpp.types import Episode, InputError, Item

FILMS = ("Heat", "Casino", "Ronin", "The Matrix")
NUMBERS = ("1984", "12 Angry Men", "10", "Seven", "2001: A Space Odyssey", "300")
INITIALS = ("L.A. Confidential", "X-Men", "Titanic", "R.E.M. Live")
SHORT = ("It", "Up", "M", "E.T.")
NESTED = ("Star Wars", "Star Wars: The Empire Strikes Back", "Alien", "Aliens", "Toy Story 2")
DATED = ("Toy Story (1995)", "Alien (1979)", "Heat (1995)")
YEARS = ("Heat (1995)", "Heat (1972)", "Casino")


def read(titles, reply, identifiers=False):
    items = [Item(index, title) for index, title in enumerate(titles)]
    return parse_reply(reply, items, identifiers=identifiers)


@pytest.mark.parametrize(
    ("titles", "reply", "named", "unmatched"),
    [
        (FILMS, "1. Ronin\n2. Heat\n3. The Matrix\n4. Casino", [2, 0, 3, 1], 0),
        (FILMS, "1.Ronin\n2) Heat\n3: The Matrix\n[4] Casino", [2, 0, 3, 1], 0),
        (FILMS, "1. **The Matrix**\n2. __Heat__\n* *Ronin*", [3, 0, 2], 0),
        (FILMS, "1. \"Casino\"\n2) 'Ronin'\n3. “Heat”", [1, 2, 0], 0),
        (FILMS, "1. CASINO\n2. the matrix", [1, 3], 0),
        (FILMS, "B. Heat\n1. A. Ronin", [0, 2], 0),  # Heat is A: the title decides
        (FILMS, "B. Heat\nC. Casino", [0, 1], 0),
        (FILMS, "- Heat: because you like crime\n- Ronin – tense\n- Casino (long)", [0, 2, 1], 0),
        (FILMS, "1. Heat - better than Casino\n2. Ronin (unlike Heat)", [0, 2], 0),
        (FILMS, "Heat, Casino, Ronin, The Matrix", [0, 1, 2, 3], 0),
        (FILMS, "Ronin > The Matrix > Heat > Casino", [2, 3, 0, 1], 0),
        (FILMS, "1. Ronin 2. Heat 3. Casino", [2, 0, 1], 0),
        (FILMS, "1. Ronin (1998)\n2. The Matrix (1999)", [2, 3], 0),
        (FILMS, "Ronin (1998), Heat (1995), Casino (1995)", [2, 0, 1], 0),
        (FILMS, "1. Heat (1995) - like Casino", [0], 0),
        (FILMS, "1. Ronin\n2. Ronin\n3. Heat\n4. Ronin", [2, 0], 0),
        (FILMS, "Ronin, Heat, Ronin", [2, 0], 0),
        (FILMS, "1. Alien\n2. Heat\n3. Heatwave", [0], 2),
        (FILMS, "Sure! Here you are:\n\n1. Ronin\n\nEnjoy!", [2], 2),
        (FILMS, "B\nA\nC", [], 3),  # identifiers nobody asked for
        (FILMS, "1\n2\n3", [], 3),
        (FILMS, "2, 1, 4, 3", [], 1),
        (FILMS, "I cannot help with that.", [], 1),
        (FILMS, "", [], 0),
        (FILMS, " \n\n***\n---\n", [], 0),
        (FILMS, "1. Heat\r\n2. Casino\r\n", [0, 1], 0),
        (SHORT, "1. It\n2. **Up**\n3. M", [0, 1, 2], 0),
        (INITIALS, "X-Men\nTitanic\nL.A. Confidential\nR.E.M. Live", [1, 2, 0, 3], 0),
        (INITIALS, "A. X-Men\nB. L.A. Confidential", [1, 0], 0),
        (SHORT, "It is hard to say what is Up", [], 1),
        (SHORT, "1. It (2017)\n2. Up - balloons\n3. M (1931)", [0, 1, 2], 0),
        (SHORT, "M. Up", [1], 0),  # M is an identifier here
        (SHORT, "M — a city seeks a murderer", [2], 0),
        (SHORT, "1. E.T.\n2. It", [3, 0], 0),
        (SHORT, "1. E.T. (1982)", [3], 0),
        (SHORT, "A. E.T. - a classic", [3], 0),
        (NUMBERS, "1. 1984\n2. 12 Angry Men\n3. 10\n4. 300", [0, 1, 2, 5], 0),
        (NUMBERS, "1984\n12 Angry Men\n300\n10", [0, 1, 5, 2], 0),
        (NUMBERS, "10. Seven\n9. 10\n8. 300 (2006)", [3, 2, 5], 0),
        (NUMBERS, "10 - Seven (1995)\n10) Alien", [3], 1),  # 10 is the rank
        (NUMBERS, "300 (2006)\n1984 (1956)", [5, 0], 0),
        (NUMBERS, "1. 2001: A Space Odyssey\n2. 12 Angry Men (1957)", [4, 1], 0),
        (NUMBERS, "12. 12 Angry Men", [1], 0),
        (NUMBERS, "1. Ghostbusters (1984)\n2. The Terminator 1984", [], 2),
        (NUMBERS, "Seven (1995), 12 Angry Men (1957), Ghostbusters (1984)", [3, 1], 0),
        (NESTED, "1. Star Wars: The Empire Strikes Back\n2. Star Wars", [1, 0], 0),
        (NESTED, "Star Wars: The Empire Strikes Back, Alien", [1, 2], 0),
        (NESTED, "Star Wars, Star Wars: The Empire Strikes Back", [0, 1], 0),
        (NESTED, "1. Aliens\n2. Alien", [3, 2], 0),
        (NESTED, "Aliens and Alien", [3, 2], 0),
        (NESTED, "2. Toy Story 2\n1. Toy Story", [4], 1),
        (NESTED, "1. Star Wars: Episode IV", [0], 0),
        (YEARS, "1. Heat (1972)\n2. Heat (1995)\n3. Casino (1995)\n4. Heat", [1, 0, 2], 1),
        (DATED, "1. Alien\n2. Toy Story\n3. heat", [1, 0, 2], 0),
        (DATED, "Alien, Toy Story (1995), Heat", [1, 0, 2], 0),
        (FILMS, "As you love Heat, I suggest:\n1. Ronin\n2. Heat", [2, 0], 0),
        (FILMS, "1. Heat\n2. Ronin\nImproved:\n1. Ronin\n2. Heat", [2, 0], 1),
        (FILMS, "1. Heat\n2. Ronin\n3. Casino\nWhy:\n1. Ronin is tense", [0, 2, 1], 1),
        (FILMS, "1. Heat\n1. Ronin\n1. Casino", [0, 2, 1], 0),
        (("Amélie", "WALL·E", "Se7en"), "1. Ame\u0301lie\n2. Wall-E\n3. SE7EN", [0, 1, 2], 0),
        (("...", "Heat"), "1. ...\n...\n2. Heat", [0, 1], 0),
        (("!!!", "Muse", "÷"), "1. !!!\n2. ÷\n3. Muse", [0, 2, 1], 0),
        (FILMS, "1. Heat\n---\n2. Ronin", [0, 2], 0),
        (("七人の侍", "羅生門"), "1. 羅生門\n2. 七人の侍", [1, 0], 0),
    ],
)
def test_titles_are_read(titles, reply, named, unmatched):
    assert read(titles, reply) == (named, unmatched)


@pytest.mark.parametrize(
    ("reply", "named", "unmatched"),
    [
        ("B\nA\nD\nC", [1, 0, 3, 2], 0),
        ("1. B\n2. A\n3) D", [1, 0, 3], 0),
        ("B, A, D, C", [1, 0, 3, 2], 0),
        ("B > A > D", [1, 0, 3], 0),
        ("**B**\n(A)\n[D]", [1, 0, 3], 0),
        ("1. B 2. A", [1, 0], 0),
        ("B - because", [1], 0),
        ("B. Heat", [0], 0),  # a title on the line decides
        ("B\nB\nA", [1, 0], 0),
        ("E\nZ", [], 2),  # outside the candidates
        ("A good choice is the following", [], 1),
        ("I think so", [], 1),
        ("b\na", [], 2),
        ("BA", [], 1),
        ("", [], 0),
    ],
)
def test_identifiers_are_read_where_they_were_asked_for(reply, named, unmatched):
    assert read(FILMS, reply, identifiers=True) == (named, unmatched)


def test_double_letters_are_identifiers():
    titles = [f"Film number {k}" for k in range(28)]
    assert read(titles, "AB\nAA\nA", identifiers=True) == ([27, 26, 0], 0)


def prompts_for(episodes, answer="titles"):
    texts = ["\n".join([f"user {e.user}", *(i.title for i in e.candidates)]) for e in episodes]
    return [Prompt(text, (), answer) for text in texts]


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
        def score(self, prompts, continuations, begun=None):
            rows = super().score(prompts, continuations, begun)
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
    assert together == [
        ranking
        for prompt, episode in zip(prompts, episodes, strict=True)
        for ranking in apart.rank([prompt], [episode])
    ]


def test_an_empty_cache_is_used_all_the_same(tmp_path, tiny_episodes):
    """An empty cache has length 0 and is therefore false; it was once replaced by one in memory."""
    episodes = tiny_episodes[:3]
    llm = ScriptedLanguageModel(reply="1. nobody")
    for calls in (3, 0):
        ranker = Ranker(llm, cache=ReplyCache(tmp_path))
        ranker.rank(prompts_for(episodes), episodes)
        assert ranker.counters.calls == calls
        ranker.llm.close()
