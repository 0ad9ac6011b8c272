"""Edits of an instruction by hand."""

from __future__ import annotations

import numpy as np
import pytest
from grips_setup import MANUAL, PLACEHOLDER

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
from rpp.prompts.patterns import load_patterns
from rpp.types import LanguageModelError


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
