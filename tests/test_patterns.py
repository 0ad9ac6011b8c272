"""Patterns from YAML: what is read and what is refused, first sentences, static prompts."""

from __future__ import annotations

from pathlib import Path

import pytest
from patterns_setup import MINIMAL, load

from rpp.prompts.options import FormatSentence, HistoryPattern
from rpp.prompts.patterns import load_patterns
from rpp.prompts.static import draw_static_prompts
from rpp.types import InputError

FOLDER = Path(__file__).parents[1] / "conf" / "patterns"


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.yaml")), ids=lambda path: path.stem)
def test_shipped_patterns(path):
    patterns = load_patterns(path)
    kinds = {"profile": (8,), "evidence": (8,), "graded": (10,), "ml-1m": (10,)}
    added = kinds.get(path.stem.rpartition("_")[2], ())
    assert patterns.n_actions == (3, 3, 9, 5, *added)
    assert patterns.manual is not None
    assert (patterns.history.start, patterns.history.increments) == (1, (0, 1, 2))
    for name in ("role", "reasoning", "format"):
        for answer in ("titles", "identifiers"):
            options = [
                patterns.describe(name, k, answer) for k in range(len(getattr(patterns, name)))
            ]
            assert len(set(options)) == len(options)
    assert any("{n_candidates}" in sentence for sentence in patterns.reasoning)


def test_there_are_patterns_for_every_domain_of_the_paper():
    assert {path.stem for path in FOLDER.glob("*.yaml")} >= {"movies", "games", "music"}
    fingerprints = {load_patterns(path).fingerprint for path in FOLDER.glob("*.yaml")}
    assert len(fingerprints) == len(list(FOLDER.glob("*.yaml")))


def test_options_are_read_in_order(patterns):
    assert patterns.n_actions == (2, 3, 2, 2)
    assert patterns.describe("role", 1) == ""
    assert patterns.describe("history", 2) == "+2"
    assert patterns.describe("format", 0) == "Write titles."
    assert patterns.describe("format", 0, "identifiers") == "Write letters."
    assert patterns.format[1] == FormatSentence("Be brief.", "Be brief.")


def test_fingerprint_knows_wording_and_order(patterns, tmp_path):
    assert load(tmp_path, "# a remark\n" + MINIMAL).fingerprint == patterns.fingerprint
    for old, new in [
        ("You know films.", "You know movies."),
        ('"Rank them.", "Rank all {n_candidates}."', '"Rank all {n_candidates}.", "Rank them."'),
        ("[0, 1, 2]", "[0, 1, 3]"),
        ("Seen:", "Watched:"),
    ]:
        assert load(tmp_path, MINIMAL.replace(old, new)).fingerprint != patterns.fingerprint


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("reasoning:", "reasonning:", "unknown key 'reasonning': did you mean 'reasoning'?"),
        ("increments:", "increment:", "unknown key 'increment': did you mean 'increments'?"),
        ("identifiers:", "identifier:", "unknown key 'identifier': did you mean 'identifiers'?"),
        ("role:", "zzz:", "unknown key 'zzz': known are history_heading"),
        ('history_heading: "Seen:"\n', "", "missing key 'history_heading'"),
        ('\n    identifiers: "Write letters."', "", "in format: missing key 'identifiers'"),
        (
            '"Rank all {n_candidates}."',
            '"Rank them."',
            "options 1 and 2 of the pattern 'reasoning'",
        ),
        ("[0, 1, 2]", "[0, 1, 0]", "options 1 and 3 of the pattern 'history' are the same (0)"),
        ("Rank all {n_candidates}.", "Rank all {n_candidates.", "a brace without its partner in"),
        (
            "You know films.",
            "You know} films.",
            "a brace without its partner in 'You know} films.'",
        ),
        ('["Rank them.", "Rank all {n_candidates}."]', "[]", "pattern 'reasoning' has no sentence"),
        ('["You know films.", ""]', "", "pattern 'role' has no sentence"),
        ("{n_candidates}:", "{n_items}:", "unknown placeholder {n_items} in"),
        ("Write letters.", "Write {letter}s.", "unknown placeholder {letter}"),
        ('"You know films."', "12", "expected a sentence, found 12: put it in quotes"),
        ('"Rank them."', "yes", "expected a sentence, found True"),
        ('"Rank them."', "{a: b}", "expected a sentence, found {'a': 'b'}"),
        ('"Rank them."', "null", "expected a sentence, found None"),
        ('["You know films.", ""]', "7", "expected a list, found 7"),
        ('["You know films.", ""]', "One role.", "expected a list, found 'One role.'"),
        ('["You know films.", ""]', "{a: b}", "expected a list, found {'a': 'b'}"),
        ("[0, 1, 2]", "3", "expected a list, found 3"),
        ("[0, 1, 2]", "[0, 1.5]", "expected a whole number, found 1.5"),
        ("[0, 1, 2]", "[0, yes]", "expected a whole number, found True"),
        ("[0, 1, 2]", "[0, -1]", "must be 0 or more"),
        ("[0, 1, 2]", "[]", "either `increments` or `lengths`"),
        ("[0, 1, 2]", "[0, many]", "expected a whole number, found 'many'"),
        ("start: 1", "start: soon", "expected a whole number, found 'soon'"),
        ("[0, 1, 2]}", "[0, 1], lengths: [1]}", "either `increments` or `lengths`"),
        ("start: 1", "start: 0", "history start is 0"),
        ("{start: 1, increments: [0, 1, 2]}", "3", "expected the keys start"),
        ('"Seen:"', '"Seen:', "line "),
    ],
)
def test_mistakes_in_a_file_are_named(tmp_path, old, new, message):
    """A role that was one sentence, not a list, once gave an action per letter."""
    assert old in MINIMAL
    with pytest.raises(InputError) as caught:
        load(tmp_path, MINIMAL.replace(old, new, 1))
    assert message in str(caught.value)
    assert "mine.yaml" in str(caught.value)


def test_malformed_yaml_names_the_line(tmp_path):
    with pytest.raises(InputError, match=r"mine\.yaml, line 4: not valid YAML"):
        load(tmp_path, MINIMAL.replace('["You know films.", ""]', "\n  - say: this: that"))


@pytest.mark.parametrize("text", ["", "- a\n- b\n", "only text"])
def test_no_mapping_is_no_patterns_file(tmp_path, text):
    with pytest.raises(InputError, match="expected the keys history_heading"):
        load(tmp_path, text)


def test_missing_file_and_wrong_encoding(tmp_path):
    with pytest.raises(InputError, match=r"no patterns file .*gone\.yaml: name one"):
        load_patterns(tmp_path / "gone.yaml")
    path = tmp_path / "latin.yaml"
    path.write_bytes(MINIMAL.replace("films", "d\xe9j\xe0 vu").encode("latin-1"))
    with pytest.raises(InputError, match="UTF-8"):
        load_patterns(path)


def test_history_pattern_by_hand():
    growing = HistoryPattern(start=1, increments=(0, 1, 2))
    assert [growing.next_length(4, action) for action in range(3)] == [4, 5, 6]
    absolute = HistoryPattern(lengths=(1, 5, 20))
    assert [absolute.next_length(4, action) for action in range(3)] == [1, 5, 20]
    assert absolute.n_actions == 3


def test_static_prompts_are_different_and_reachable(patterns):
    prompts = draw_static_prompts(patterns, n_prompts=40, n_steps=2, seed=0)
    assert len(set(prompts)) == 40
    for prompt in prompts:
        assert all(0 <= a < n for a, n in zip(prompt.actions, patterns.n_actions, strict=True))
        assert 1 <= prompt.length <= 5  # 1 + 2 steps of at most 2
    assert prompts == draw_static_prompts(patterns, 40, 2, 0)
    assert prompts != draw_static_prompts(patterns, 40, 2, 1)


def test_static_prompts_cover_everything_when_asked_for_more(patterns):
    prompts = draw_static_prompts(patterns, n_prompts=1000, n_steps=2, seed=0)
    assert len(set(prompts)) == len(prompts) == 2 * 2 * 2 * 5
    assert {prompt.length for prompt in prompts} == {1, 2, 3, 4, 5}
    assert {prompt.actions for prompt in prompts} == {
        (role, 0, reasoning, answer)
        for role in range(2)
        for reasoning in range(2)
        for answer in range(2)
    }


def test_static_prompts_with_absolute_lengths(tmp_path):
    patterns = load(tmp_path, MINIMAL.replace("increments: [0, 1, 2]", "lengths: [1, 5, 20]"))
    prompts = draw_static_prompts(patterns, n_prompts=1000, n_steps=7, seed=0)
    assert len(prompts) == 24
    assert all((1, 5, 20)[prompt.actions[1]] == prompt.length for prompt in prompts)


@pytest.mark.parametrize("n", range(1, 11))
def test_the_first_sentences(n):
    """Of 3, 9 and 5: no more than n, the manual prompt's always, and nested."""
    patterns = load_patterns(FOLDER / "movies.yaml")  # manual: role 2, reasoning 5, format 1
    fewer, more = patterns.first(n), patterns.first(n + 1)
    for name, size in (("role", 3), ("reasoning", 9), ("format", 5)):
        assert fewer.n_options(name) == min(n, size)
        assert set(getattr(fewer, name)) <= set(getattr(more, name))
    assert fewer.learning([]) == patterns.learning([])
    assert (fewer.fingerprint == patterns.fingerprint) == (n >= 9)
    if n >= 5:
        assert fewer.reasoning == patterns.reasoning[:n]
    else:
        assert fewer.reasoning == (*patterns.reasoning[: n - 1], patterns.reasoning[4])
    assert fewer.history == patterns.history


def test_the_first_of_a_file_without_a_manual_prompt(patterns):
    assert patterns.manual is None
    assert patterns.first(1).role == patterns.role[:1]
    with pytest.raises(InputError, match="n_sentences is 0: keep at least 1"):
        patterns.first(0)


def test_history_lengths_of_ones_own_take_the_place_of_the_files():
    patterns = load_patterns("conf/patterns/movies.yaml").with_lengths([1, 20])
    assert patterns.n_actions == (3, 2, 9, 5)
    assert patterns.history.next_length(7, 1) == 20
    assert patterns.fingerprint != load_patterns("conf/patterns/movies.yaml").fingerprint
    for wrong in ([], [0]):
        with pytest.raises(InputError, match="history"):
            patterns.with_lengths(wrong)


def test_history_lengths_of_a_file_that_are_overruled_are_told_once(tmp_path, caplog):
    """``conf/rpp.yaml`` once overruled them without a word."""
    load(tmp_path, MINIMAL.replace("increments: [0, 1, 2]", "lengths: [2, 6]"))
    for lengths in ([2, 6], [1, 4], [1, 4], None):
        load_patterns(tmp_path / "mine.yaml", history_lengths=lengths)
    (said,) = caplog.messages
    assert "mine.yaml: its history lengths [2, 6] are overruled" in said
    assert "model.history_lengths [1, 4]: set that to null" in said
