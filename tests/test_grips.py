"""GRIPS: edits by hand, what the search finds, and what it may not look at."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from pipeline import PATTERNS, MadeUpUsers, shown_history

from rpp.comparison.base import Task
from rpp.comparison.edits import (
    Instruction,
    Rewording,
    add,
    delete,
    draw_edit,
    draw_wordless_edit,
    paraphrase,
    split,
    swap,
)
from rpp.comparison.grips import GRIPS, OracleGRIPS, PersonalGRIPS, validation_episode
from rpp.llms.base import ScriptedLanguageModel
from rpp.llms.cache import ReplyCache
from rpp.llms.cached import CachedLanguageModel
from rpp.llms.controls import SKILL_LESS, answers_at_random, shown_candidates
from rpp.metrics import METRICS, chance, mean_interval, target_ranks
from rpp.prompts.patterns import load_patterns
from rpp.prompts.refine import INSTRUCTION, Refiner
from rpp.prompts.static import only_prompt
from rpp.ranker import Ranker
from rpp.types import (
    InputError,
    LanguageModelError,
    LanguageModelStop,
    TargetAccessError,
    final_scoring,
)

SENTENCES = load_patterns(PATTERNS)
MANUAL = SENTENCES.learning([])
PLACEHOLDER = "{n_candidates}"


def task(reply, users=None, refiner=None, **options):
    users = users or MadeUpUsers(n_train=1, n_validation=20, n_test=30)
    llm = ScriptedLanguageModel(reply=reply)
    return Task(users, SENTENCES, Ranker(llm, seed=3), n_steps=3, refiner=refiner, **options)


def ndcg_of(rankings, episodes, name="ndcg@10"):
    with final_scoring():
        return METRICS[name](target_ranks(rankings, episodes))


def asks_for_words(prompt):
    """The phrase a prompt wants reworded, if it is such a prompt."""
    found = re.search(r"^Instruction: (.*)$", prompt, re.MULTILINE)
    return found and found[1]


# Edits


@pytest.mark.parametrize(
    ("text", "phrases"),
    [
        ("You know films.", ("You know films.",)),
        ("", ()),
        ("Think, step by step, and rank them.", ("Think,", "step", "by step,", "and rank them.")),
        ("Rank them; the best first. Then stop!", ("Rank them;", "the best first.", "Then stop!")),
        ("Guess what I like, and then rank.", ("Guess what I like,", "and then rank.")),
        ("Films that I like", ("Films", "that I like")),
        ("And that is all", ("And that is all",)),
        ("two  blanks, kept  ", ("two  blanks,", "kept  ")),
    ],
)
def test_phrases_by_hand(text, phrases):
    assert split(text) == phrases
    assert " ".join(split(text)) == text


def test_phrases_of_every_patterns_file_are_its_sentences():
    for domain in ("movies", "games", "music"):
        patterns = load_patterns(f"conf/patterns/{domain}.yaml")
        for text in (*patterns.role, *patterns.reasoning):
            assert " ".join(split(text)) == text
        assert all(len(split(text)) > 1 for text in patterns.reasoning)


def test_edits_by_hand():
    before = Instruction((("a", "b"), ("c", "d")))
    assert before.texts == ("a b", "c d")
    assert before.places == [(0, 0), (0, 1), (1, 0), (1, 1)]
    assert before.gaps == [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (1, 2)]
    assert delete(before, (0, 1)) == Instruction((("a",), ("c", "d")), ("b",))
    assert swap(before, (0, 0), (0, 1)).texts == ("b a", "c d")
    assert swap(before, (0, 1), (1, 0)).texts == ("a c", "b d")
    bare = delete(delete(before, (0, 0)), (0, 0))
    assert bare == Instruction(((), ("c", "d")), ("a", "b"))
    assert bare.texts == ("", "c d")
    assert add(bare, 1, (1, 1)) == Instruction(((), ("c", "b", "d")), ("a",))
    assert add(add(bare, 0, (0, 0)), 0, (0, 1)) == before


def test_a_paraphrase_is_judged_like_a_refinement():
    before = Instruction.of("You know films.", "Think of me, and rank the {n_candidates} films.")
    rank = (1, 1)
    assert before.at(rank) == "and rank the {n_candidates} films."
    better = paraphrase(before, rank, 'Sure:\n"then sort the {n_candidates} films, quickly."')
    assert better.texts[1] == "Think of me, then sort the {n_candidates} films, quickly."
    assert better.phrases[1][1:] == ("then sort the {n_candidates} films,", "quickly.")
    assert paraphrase(before, (1, 0), "Think.").texts[1].startswith("Think and rank")
    assert paraphrase(before, rank, "then sort the films.") is None  # the placeholder is gone
    assert paraphrase(before, rank, "then see the {n_candidates} films.") is None  # no ranking
    assert paraphrase(before, (0, 0), "") is None
    assert paraphrase(before, (1, 0), ".") is None
    assert paraphrase(before, rank, LanguageModelError("connection lost")) is None
    moved = swap(before, (0, 0), rank)  # what asks for a ranking asks for it as a role, too
    assert paraphrase(moved, (0, 0), "then see the {n_candidates} films.") is None


def test_every_kind_of_edit_is_drawn_and_placeholders_survive():
    rng = np.random.default_rng(0)
    seen = set()
    for _ in range(200):
        current = Instruction.of(MANUAL.role[0], MANUAL.reasoning[0])
        words = sorted(" ".join(current.texts).split())
        for _ in range(8):
            edit = draw_edit(current, rng, 10)
            if isinstance(edit, Rewording):
                assert 0 <= edit.draw < 10
                seen.add("paraphrase")
                continue
            n_before, n_after = len(current.places), len(edit.places)
            kind = {-1: "delete", 0: "swap", 1: "add"}[n_after - n_before]
            assert len(edit.deleted) == len(current.deleted) + n_before - n_after
            seen.add(kind)
            current = edit
            # nothing is lost, nothing made up, and no word is cut
            assert sorted(" ".join((*current.texts, *current.deleted)).split()) == words
            assert len(current.places) >= 1
            text = " ".join(current.texts)
            assert text.count("{") == text.count("}") == text.count(PLACEHOLDER)
    assert seen == {"delete", "swap", "add", "paraphrase"}


def test_where_there_is_nothing_to_edit_nothing_is():
    single = Instruction.of("", "Rank.")
    rng = np.random.default_rng(0)
    assert draw_wordless_edit(single, rng) == draw_edit(single, rng, 0) == single
    nothing = Instruction.of("", "")
    assert draw_edit(nothing, rng, 10) == nothing


# The search


def planted(users, is_good):
    """The target first where a prompt is good for its user, otherwise last.

    Whoever has seen A, then B turns to C next: that is how it knows users and all their targets.
    """
    after = {}
    with final_scoring():
        for split_name in ("validation", "test"):
            for e in users.episodes(split_name):
                titles = [item.title for item in (*e.history, e.candidates[e.target])]
                for k in range(2, len(titles)):
                    after.setdefault((titles[k - 2], titles[k - 1]), (e.user, titles[k]))

    def reply(prompt):
        if asks_for_words(prompt):
            return ""
        user, target = after[tuple(shown_history(prompt)[-2:])]
        others = [title for title in shown_candidates(prompt) if title != target]
        return "\n".join([target, *others] if is_good(user, prompt) else [*others, target])

    return reply


@pytest.fixture(scope="module")
def users():
    return MadeUpUsers(n_train=1, n_validation=20, n_test=30, seed=1)


def test_an_instruction_better_for_all_is_found(users):
    def is_good(user, prompt):
        return "one step at a time" not in prompt

    ranks = GRIPS(n_edits=40).learn(task(planted(users, is_good), users))
    test = users.episodes("test")
    assert (ndcg_of(ranks(test), test) == 1).all()


def test_better_words_are_found_through_the_refiner(users):
    """The ranker's own model knows no other words; the refiner does, and only they help."""
    llm = ScriptedLanguageModel(reply=lambda p: f"Oh, {asks_for_words(p)}", name="other")
    refiner = Refiner(CachedLanguageModel(llm, ReplyCache(None)), SENTENCES, "titles")
    reply = planted(users, lambda user, prompt: "Oh, " in prompt)
    test = users.episodes("test")
    without = GRIPS().learn(task(reply, users))(test)
    assert ndcg_of(without, test).mean() == pytest.approx(1 / np.log2(11))  # the last of ten
    ranks = GRIPS().learn(task(reply, users, refiner))(test)
    assert (ndcg_of(ranks, test) == 1).all()


def test_an_instruction_better_for_one_is_found(users):
    """Half of the users are annoyed by one phrase, half by another that the first half needs."""
    step, love = "one step at a time", "that people end up loving"

    def is_good(user, prompt):
        wanted, unwanted = (step, love) if user % 2 else (love, step)
        return wanted in prompt and unwanted not in prompt

    test = users.episodes("test")
    reply = planted(users, is_good)
    own = ndcg_of(PersonalGRIPS(n_edits=40).learn(task(reply, users))(test), test)
    shared = ndcg_of(GRIPS(n_edits=40).learn(task(reply, users))(test), test)
    assert (own == 1).double().mean() > 0.95
    assert ((shared == 1) == (torch.arange(len(test)) % 2 == shared.argmax() % 2)).all()


@pytest.mark.parametrize("method", [GRIPS, PersonalGRIPS, OracleGRIPS])
def test_calls_are_bounded_and_start_with_the_manual_prompt(users, method):
    asked = []
    given = task(lambda p: asked.append(p) or answers_at_random(p), users)
    test = users.episodes("test")
    grips = method(n_edits=3, n_rounds=2)
    ranks = grips.learn(given)
    rankings = ranks(test)
    assert [len(r.order) for r in rankings] == [10] * len(test)
    manual = MANUAL.reasoning[0].replace(PLACEHOLDER, "10")
    n_scored = 20 if method is GRIPS else 30
    assert all(manual in prompt for prompt in asked[:n_scored])
    n_paraphrases = sum(bool(asks_for_words(prompt)) for prompt in asked)
    assert 0 < n_paraphrases <= 2 * 3 * (1 if method is GRIPS else 30)
    assert n_scored < given.ranker.counters.calls <= grips.max_calls(given, len(test))
    history = {len(shown_history(prompt)) for prompt in asked if not asks_for_words(prompt)}
    assert history == {SENTENCES.manual.history}
    with_words = grips.max_calls(given, 30)
    assert with_words - method(3, 2, 2, 0).max_calls(given, 30) == 6 * (
        1 if method is GRIPS else 30
    )


def test_patience_ends_a_search_and_so_does_a_perfect_score(users):
    asked = []

    def copies(prompt):  # every instruction is as good as any other
        asked.append(prompt)
        return "\n".join(shown_candidates(prompt))

    given = task(copies, users)
    one = users.episodes("test")[:1]
    scored = []

    class Notes(PersonalGRIPS):
        def rewards(self, rankings, episodes):
            scored.append(len(rankings))
            return super().rewards(rankings, episodes)

    own = validation_episode(one[0], users.catalogue, 0)
    assert own.target > 0
    Notes(n_edits=4, patience=3, n_paraphrases=0).learn(given)(one)
    assert scored == [1, 4, 4, 4]
    assert not any(asks_for_words(prompt) for prompt in asked)
    scored.clear()
    perfect = task(planted(users, lambda user, prompt: True), users)
    Notes().learn(perfect)(one)
    assert scored == [1]


def test_reordering_users_reorders_the_output(users):
    test = users.episodes("test")[:12]
    ranks = PersonalGRIPS(n_rounds=2).learn(task(answers_at_random, users))
    turned = PersonalGRIPS(n_rounds=2).learn(task(answers_at_random, users))
    assert [r.order for r in turned(test[::-1])] == [r.order for r in ranks(test)][::-1]


# What may be looked at


def test_negatives_are_new_to_the_user_and_no_test_target_is_read(users):
    positions = []
    for episode in users.episodes("test"):
        own = validation_episode(episode, users.catalogue, 5)
        positions.append(own.target)  # readable: it is no test episode
        assert own.split == "validation"
        assert own.candidates[own.target] == episode.history[-1]
        assert own.history == episode.history[:-1]
        others = {item.index for item in own.candidates} - {episode.history[-1].index}
        assert len(others) == 9
        assert not others & {i.index for i in (*episode.history, *episode.candidates)}
        assert own == validation_episode(episode, users.catalogue, 5)
        assert own != validation_episode(episode, users.catalogue, 6)
    assert len(set(positions)) > 5
    episode = users.episodes("test")[0]
    with pytest.raises(TargetAccessError):
        _ = episode.target
    few = validation_episode(episode, [*episode.history, *episode.candidates], 5)
    assert few.candidates == (episode.history[-1],)  # nothing is left to tell it from


def test_the_other_test_candidates_do_not_show_in_the_search(users):
    """Were the test target looked at, moving it would change what is found."""
    test = users.episodes("test")[:10]
    moved = [replace(e, withheld=(e.withheld + 1) % 10) for e in test]
    found = []
    for episodes in (test, moved):
        ranks = PersonalGRIPS(n_rounds=3).learn(task(answers_at_random, users))
        found.append([r.reply for r in ranks(episodes)])
    assert found[0] == found[1]
    ranks = OracleGRIPS(n_rounds=3).learn(task(answers_at_random, users))
    assert [r.reply for r in ranks(test)] != [r.reply for r in ranks(moved)]


def test_a_user_with_one_past_item_keeps_the_manual_prompt(users):
    prompts = []
    short = [replace(e, history=e.history[-1:]) for e in users.episodes("test")[:3]]
    long = users.episodes("test")[3:5]
    given = task(lambda p: prompts.append(p) or answers_at_random(p), users)
    rankings = PersonalGRIPS(n_paraphrases=0).learn(given)([short[0], *long, *short[1:]])
    assert [r.status for r in rankings] == ["valid"] * 5
    own = [p for p in prompts if len(shown_history(p)) == 1]
    assert len(own) == 3
    assert all(MANUAL.role[0] in p for p in own)


HONEST = [GRIPS, PersonalGRIPS]


@pytest.mark.parametrize("reply", SKILL_LESS, ids=lambda f: f.__name__)
@pytest.mark.parametrize("method", HONEST, ids=lambda m: m.__name__)
def test_no_skill_scores_chance(reply, method):
    users = MadeUpUsers(n_train=1, n_validation=10, n_test=300, seed=2)
    assert not method.is_oracle
    test = users.episodes("test")
    rankings = method(n_edits=3, n_rounds=2).learn(task(reply, users))(test)
    for name in ("ndcg@1", "ndcg@10"):
        interval = mean_interval(ndcg_of(rankings, test, name), confidence=0.999)
        assert interval.low <= chance(name, 10) <= interval.high, interval


def test_the_oracle_makes_a_random_ranker_shine(users):
    """The figures that a search on the tested interaction gives to no skill at all."""
    assert OracleGRIPS.is_oracle
    assert OracleGRIPS.name == "grips_oracle"
    test = users.episodes("test")
    rankings = OracleGRIPS().learn(task(answers_at_random, users))(test)
    assert mean_interval(ndcg_of(rankings, test, "ndcg@1"), confidence=0.999).low > 0.4
    assert chance("ndcg@1", 10) == pytest.approx(0.1)


# What goes wrong


def test_failed_rankings_neither_crash_nor_win(users):
    """A model that fails on every prompt without the manual reasoning: nothing beats that."""
    whole = MANUAL.reasoning[0].replace(PLACEHOLDER, "10")
    good = planted(users, lambda user, prompt: "end up loving" not in prompt)

    def reply(prompt):
        return good(prompt) if whole in prompt else LanguageModelError("refused")

    def only_manual(prompt):
        both = whole in prompt and MANUAL.role[0] in prompt
        return answers_at_random(prompt) if both else LanguageModelError("refused")

    test = users.episodes("test")
    for method in (GRIPS, PersonalGRIPS, OracleGRIPS):
        # deleting a phrase of the role is better and answered; all other edits fail
        rankings = method(n_edits=40).learn(task(reply, users))(test)
        assert not any(r.failed for r in rankings)
        assert ndcg_of(rankings, test).mean() > 0.95
    for method in (PersonalGRIPS, OracleGRIPS):
        # one search on its own in which nothing but the manual prompt is answered
        (alone,) = method(n_edits=2).learn(task(only_manual, users))(test[:1])
        assert not alone.failed


@pytest.mark.parametrize("method", [GRIPS, PersonalGRIPS, OracleGRIPS])
def test_a_model_that_is_gone_is_no_search_without_success(users, method):
    """The manual prompt's replies are in the cache, so its row would have looked valid."""
    whole = MANUAL.reasoning[0].replace(PLACEHOLDER, "10")

    def only_manual(prompt):
        both = whole in prompt and MANUAL.role[0] in prompt
        return answers_at_random(prompt) if both else LanguageModelError("connection lost")

    with pytest.raises(LanguageModelError, match="connection lost"):
        method(n_edits=2, n_paraphrases=0).learn(task(only_manual, users))(users.episodes("test"))


def test_a_lucky_answer_among_failures_does_not_win(users):
    """Edited prompts are answered for one validation user alone, and perfectly."""
    whole = MANUAL.reasoning[0].replace(PLACEHOLDER, "10")
    lucky = planted(users, lambda user, prompt: True)
    first = tuple(shown_candidates(ask_once(users, 0)))

    def reply(prompt):
        if whole in prompt and MANUAL.role[0] in prompt:
            return answers_at_random(prompt)
        if tuple(shown_candidates(prompt)) == first:
            return lucky(prompt)
        return LanguageModelError("refused")

    test = users.episodes("test")
    rankings = GRIPS(n_paraphrases=0).learn(task(reply, users))(test)
    assert not any(r.failed for r in rankings)


def ask_once(users, user):
    """The manual prompt of a validation user."""
    prompts = []
    given = task(lambda p: prompts.append(p) or "", users)
    given.manual.step_static(users.episodes("validation")[user : user + 1], [only_prompt(MANUAL)])
    return prompts[0]


def test_a_model_that_rewords_nothing_costs_other_edits_only(users):
    answers = planted(users, lambda user, prompt: "one step at a time" not in prompt)

    def reply(prompt):
        if asks_for_words(prompt):
            return LanguageModelError("cannot generate")
        return answers(prompt)

    test = users.episodes("test")[:5]
    rankings = GRIPS(n_edits=40).learn(task(reply, users))(test)
    assert (ndcg_of(rankings, test) == 1).all()


def test_a_spent_budget_ends_the_search(users):
    llm = ScriptedLanguageModel(reply=answers_at_random)
    ranker = Ranker(llm, max_calls=50)
    with pytest.raises(LanguageModelStop, match="50 calls"):
        GRIPS(n_paraphrases=0).learn(Task(users, SENTENCES, ranker, n_steps=3))


def test_what_is_asked_for_rewording_is_the_phrase_alone(users):
    asked = []
    given = task(lambda p: asked.append(p) or answers_at_random(p), users)
    GRIPS(n_rounds=2, n_paraphrases=1).learn(given)
    phrases = {*split(MANUAL.role[0]), *split(MANUAL.reasoning[0])}
    requests = [prompt for prompt in asked if asks_for_words(prompt)]
    assert requests
    assert set(requests) <= {INSTRUCTION.replace("{sentence}", phrase) for phrase in phrases}


@pytest.mark.parametrize("method", [GRIPS, PersonalGRIPS, OracleGRIPS])
def test_bad_input(users, method):
    bare = replace(task(""), patterns=replace(SENTENCES, manual=None))
    with pytest.raises(InputError, match="add a section `manual`"):
        method().learn(bare)
    for wrong in ({"n_edits": 0}, {"patience": 0}, {"n_rounds": 0}, {"n_paraphrases": -1}):
        with pytest.raises(InputError, match="at least 1"):
            method(**wrong)
