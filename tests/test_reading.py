"""A patterns file to its sections, by hand."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from rpp.prompts.options import FormatSentence
from rpp.prompts.reading import (
    count,
    entries,
    format_sentence,
    keys,
    parsed_with_base,
    text,
    texts,
)
from rpp.types import InputError


@dataclass
class Pair:
    first: int
    second: int = 0


def test_a_file_lies_on_top_of_the_one_it_is_based_on(tmp_path):
    (tmp_path / "base.yaml").write_text("role: [a, b]\nreasoning: [c]\n")
    (tmp_path / "own.yaml").write_text("based_on: base.yaml\nrole: [d]\n")
    assert parsed_with_base(tmp_path / "own.yaml") == {"role": ["d"], "reasoning": ["c"]}
    (tmp_path / "third.yaml").write_text("based_on: own.yaml\n")
    with pytest.raises(InputError, match=r"third\.yaml: based_on: own\.yaml must be a whole"):
        parsed_with_base(tmp_path / "third.yaml")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"role: [a\nhistory: b", r"file\.yaml, line 2: not valid YAML"),
        ("role: é".encode("latin-1"), r"file\.yaml: not valid YAML in UTF-8"),
    ],
)
def test_what_is_no_yaml_is_named(tmp_path, content, message):
    (tmp_path / "file.yaml").write_bytes(content)
    with pytest.raises(InputError, match=message):
        parsed_with_base(tmp_path / "file.yaml")


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(InputError, match=r"no patterns file .*nothing\.yaml"):
        parsed_with_base(tmp_path / "nothing.yaml")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"first": 1, "secnd": 2}, "unknown key 'secnd': did you mean 'second'"),
        ({"first": 1, "xyz": 2}, "unknown key 'xyz': known are first, second"),
        ({"second": 1}, "missing key 'first'"),
        ([1], r"expected the keys first, second, found \[1\]"),
    ],
)
def test_keys_that_are_not_the_fields_are_named(content, message):
    with pytest.raises(InputError, match=message):
        keys(content, Pair)
    assert keys({"first": 1}, Pair) == {"first": 1}


def test_sections_by_hand():
    assert format_sentence(" One a line. ") == FormatSentence("One a line.", "One a line.")
    assert format_sentence({"titles": "T", "identifiers": "I "}) == FormatSentence("T", "I")
    assert texts([" a", "b "]) == ("a", "b")
    assert entries(None) == []
    assert (count(3), text(" x\n")) == (3, "x")


@pytest.mark.parametrize("value", [True, 1.0, "1", None])
def test_what_is_no_whole_number_is_shown(value):
    with pytest.raises(InputError, match=f"expected a whole number, found {value!r}"):
        count(value)


@pytest.mark.parametrize("value", [1984, None, ["a"]])
def test_what_is_no_sentence_is_shown(value):
    with pytest.raises(InputError, match=r"expected a sentence, found .*: put it in quotes"):
        text(value)


def test_what_is_no_list_is_shown():
    with pytest.raises(InputError, match="expected a list, found 'a': begin every entry"):
        entries("a")
