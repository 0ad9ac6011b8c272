"""Placeholders of sentences, and braces that are none."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from rpp.prompts.compose import Display, compose
from rpp.prompts.options import ProfilePattern, filled, placeholders
from rpp.prompts.patterns import load_patterns
from rpp.types import InputError
from rpp.yaml_files import read_yaml


@pytest.mark.parametrize(
    ("text", "names", "expected"),
    [
        ("rank {n}", ["n"], "rank 7"),
        ("as {{json}}", [], "as {json}"),
        ('{{"best": {n}}}', ["n"], '{"best": 7}'),
        ("{{{n}}}", ["n"], "{7}"),
        ("{{{{n}}}}", [], "{{n}}"),
        ("{other} {n}", ["other", "n"], "{other} 7"),
        ("a { b } c", [" b "], "a { b } c"),
        ("a { b", [], "a { b"),
        ("}{", [], "}{"),
    ],
)
def test_doubled_braces_stand_for_braces(text, names, expected):
    assert placeholders(text) == names
    assert filled(text, {"n": 7}) == expected


def test_what_is_filled_in_is_not_filled_again():
    assert filled("{a} {b}", {"a": "{b} {{", "b": 2}) == "{b} {{ 2"
    pattern = ProfilePattern(
        occupation="Works as {{the}} {occupation}.", choices=(("occupation",),)
    )
    assert pattern.sentence(0, {"occupation": "{x}} y"}) == "Works as {the} {x}} y."


def with_role(folder, sentence):
    """The sentences for movies with a role of one's own."""
    content = read_yaml(Path("conf/patterns/movies.yaml")) | {"role": [sentence]}
    content.pop("manual", None)
    (folder / "own.yaml").write_text(yaml.safe_dump(content))
    return load_patterns(str(folder / "own.yaml"))


def test_a_literal_brace_reaches_the_prompt(tmp_path, tiny_episodes):
    """JSON could not be asked for: a brace was taken for a placeholder that nobody fills."""
    patterns = with_role(tmp_path, 'Answer as {{"ranking": [{n_candidates} titles]}}.')
    actions = [[0] * len(patterns.n_actions)]
    (prompt,) = compose(tiny_episodes[:1], patterns, actions, [3], Display())
    assert 'Answer as {"ranking": [10 titles]}.' in prompt.text.splitlines()


def test_an_unknown_placeholder_names_the_way_to_write_braces(tmp_path):
    with pytest.raises(InputError, match=r"placeholder \{json\} .*\{\{ and \}\} stand for"):
        with_role(tmp_path, "As {json}.")
