"""YAML files: mistakes are told with file and line."""

from __future__ import annotations

import pytest

from rpp.cli import check_yaml, run
from rpp.types import InputError
from rpp.yaml_files import read_yaml


@pytest.mark.parametrize(
    ("text", "key", "lines"),
    [
        ("data:\n  a: 1\nmodel: 2\ndata:\n  b: 2\n", "data", "1 and 4"),
        ("data:\n  a: 1\n  b: 2\n  a: 3\n", "a", "2 and 4"),
        ("list:\n- x: 1\n  y: 2\n  x: 3\n", "x", "2 and 4"),
        ('a: 1\n"a": 2\n', "a", "1 and 2"),
        ("{a: 1, b: {c: 1, c: 2}}\n", "c", "1 and 1"),
        ("1: a\n2: b\n1: c\n", "1", "1 and 3"),
        ("a: &x {b: 1}\n<<: *x\n<<: *x\n", "<<", "2 and 3"),
        ("? [p, q]\n: {z: 1, z: 2}\n", "z", "2 and 2"),
    ],
)
def test_a_key_given_twice_is_named_with_both_lines(tmp_path, text, key, lines):
    """The first was dropped without a word, so that a run was on other data than its file says."""
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(
        InputError, match=rf"mine\.yaml: the key '{key}' stands twice .* lines {lines}:"
    ):
        read_yaml(path)


def test_anchors_and_merge_keys_work(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("base: &base {a: 1, b: 2}\nown:\n  <<: *base\n  b: 3\nlike: [*base, *base]\n")
    base = {"a": 1, "b": 2}
    assert read_yaml(path) == {"base": base, "own": {"a": 1, "b": 3}, "like": [base, base]}
    path.write_text("\ufeffa: 1\n", encoding="utf-8")
    assert read_yaml(path) == {"a": 1}
    path.write_text("")
    assert read_yaml(path) is None


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"a: [1\nb: 2", r"mine\.yaml, line 2: not valid YAML"),
        ("a: \u00e9".encode("latin-1"), r"mine\.yaml: not valid YAML in UTF-8"),
        (b"a: \x01", r"mine\.yaml: not valid YAML"),
        (b"a: 2024-13-45", r"mine\.yaml: not valid YAML: month must be"),
        (b"a: &a [*a, *b]", r"mine\.yaml, line 1: not valid YAML"),
        (b"a:\n\tb: 1\n", r"mine\.yaml, line 2: .*a tab .*: indent with spaces"),
        (b"a: {b: 1\nc: 2\n", r"mine\.yaml, line 2: .* close the brace { of line 1"),
        (b"a: 1\nb: [1\nc: 2\n", r"mine\.yaml, line 3: .* close the bracket \[ of line 2"),
        (b'a: "x\nb: 1\n', r"mine\.yaml, line 3: .* close the quote of line 1"),
    ],
)
def test_what_is_no_yaml_is_named(tmp_path, content, message):
    (tmp_path / "mine.yaml").write_bytes(content)
    with pytest.raises(InputError, match=message) as said:
        read_yaml(tmp_path / "mine.yaml")
    assert "\n" not in str(said.value)


@pytest.mark.parametrize(
    "option", ["--config {}", "-c {}", "--config={}", "--data {}", "--data={}"]
)
def test_every_file_of_the_command_line_is_read(tmp_path, option, capsys):
    path = tmp_path / "mine.yaml"
    path.write_text("data:\n  a: 1\ndata:\n  b: 2\n")
    with pytest.raises(SystemExit):
        run(["fit", *option.format(path).split()])
    assert "mine.yaml: the key 'data' stands twice" in capsys.readouterr().err


def test_a_folder_and_a_missing_file_are_named(tmp_path):
    with pytest.raises(InputError, match="is a folder: name the YAML file in it"):
        check_yaml(["--config", str(tmp_path)])
    with pytest.raises(InputError, match=r"there is no configuration file .*none\.yaml"):
        check_yaml(["--config", str(tmp_path / "none.yaml")])
    check_yaml(["--name", "none.yaml"])


@pytest.mark.parametrize(
    ("files", "options", "is_told"),
    [
        (["mine.yaml", "conf/controls/copies_the_list.yaml"], [], True),
        (["mine.yaml", "conf/controls/copies_the_list.yaml"], ["--name", "x"], False),
        (["conf/data/ml-1m.yaml", "conf/controls/copies_the_list.yaml"], [], False),
        (["conf/controls/copies_the_list.yaml", "mine.yaml"], [], False),
    ],
)
def test_an_overlay_that_names_the_run_in_place_of_ones_own_file_is_told(
    here, capsys, files, options, is_told
):
    """Results of a control once came under its own name, without a word."""
    (here / "mine.yaml").write_text("name: mine\n")
    files = ["conf/rpp.yaml", *files]
    check_yaml([word for file in files for word in ("--config", file)] + options)
    told = "The run is called copies_the_list as in conf/controls/copies_the_list.yaml, not mine"
    assert (told in " ".join(capsys.readouterr().err.split())) == is_told
