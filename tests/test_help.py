"""Help on the command line, and options that are mistyped."""

from __future__ import annotations

import re
import sys

import pytest
import yaml
from cli_setup import command

from rpp import help as usage
from rpp.cli import run


def test_the_short_help_fits_a_screen_and_needs_no_configuration(capsys):
    """It was 568 lines of Lightning's, and explained none of our options."""
    with pytest.raises(SystemExit) as stop:
        run(["fit", "--help"])
    assert stop.value.code == 0
    printed = capsys.readouterr().out
    assert printed.strip() == usage.SHORT.strip()
    assert len(printed.splitlines()) < 45
    assert max(map(len, printed.splitlines())) <= 100


def test_the_long_help_is_that_of_the_parser(monkeypatch, capsys):
    """It once was the short one again."""
    monkeypatch.setattr(sys, "argv", ["train.py", "fit", "--help_all"])
    for name in ("stdout", "stderr"):
        monkeypatch.setattr(sys, name, getattr(sys, name))  # the command puts its own there
    with pytest.raises(SystemExit) as stop:
        run()
    assert stop.value.code == 0
    printed = capsys.readouterr().out
    assert "--trainer.max_epochs" in printed
    assert len(printed.splitlines()) > 100


def test_every_option_of_the_short_help_exists(here, capsys):
    """Options named in it are told from mistyped ones by the parser itself."""
    named = set(re.findall(r"^  --([\w.]+)", usage.SHORT, flags=re.MULTILINE)) - {"config"}
    assert len(named) == 13
    values = {
        "name": "x", "model.learn": "[reasoning]", "model.patterns": "conf/patterns/movies.yaml",
        "environment.decoding": "generate", "environment.llm.model": "x", "ckpt_path": "last",
        "model.history_lengths": "[1]",
    }  # fmt: skip
    words = [word for name in named for word in (f"--{name}", values.get(name, "1"))]
    with pytest.raises(SystemExit) as stop:
        run(["fit", "--config", "conf/rpp.yaml", *words, "--print_config"])
    assert stop.value.code == 0, capsys.readouterr().err


@pytest.mark.parametrize(
    ("mistyped", "sentence"),
    [
        ({"model": {"init_args": {"n_stps": 3}}}, "model.n_stps (own.yaml, line 3): did you mean"
         " model.n_steps?"),
        ({"modl": {"a": 1}}, "modl.a (own.yaml, line 1): did you mean model?"),
        ({"environment": {"decodng": "x"}}, "environment.decodng (own.yaml, line 2): did you mean"
         " environment.decoding?"),
        ({"data": {"init_args": {"custom": {"title": "x"}}}}, "data.custom.title (own.yaml, line"
         " 4): did you mean data.custom.titles?"),
        ("--model.n_stps 3", "model.n_stps: did you mean model.n_steps?"),
        ("--nme x", "nme: did you mean name?"),
        ("--trainer.max_epchs 3", "trainer.max_epchs: did you mean trainer.max_epochs?"),
        ("--environment.llm.repl_ x", "environment.llm.repl_: did you mean environment.llm.reply?"),
        ("--qqqq 1", "qqqq: see --help"),
    ],
)  # fmt: skip
def test_a_mistyped_option_is_one_line_with_what_was_meant(here, capsys, mistyped, sentence):
    """The useful line was once the seventh of seventy, above the usage of Lightning."""
    options = mistyped.split() if isinstance(mistyped, str) else ["--config", "own.yaml"]
    if isinstance(mistyped, dict):
        (here / "own.yaml").write_text(yaml.safe_dump(mistyped))
    with pytest.raises(SystemExit) as stop:
        run(command("fit", *options))
    assert stop.value.code == 2
    assert capsys.readouterr().err.strip() == f"error: there is no option {sentence}"


@pytest.mark.parametrize(
    ("option", "value", "words"),
    [
        ("--model.n_steps", "x", "model.n_steps: Expected a <class 'int'>. Got value: x"),
        ("--environment.decoding", "x", "environment.decoding: Expected a typing.Literal"),
        ("--environment.llm", "nowhere.Model", "No module named 'nowhere'"),
    ],
)
def test_a_value_of_another_kind_is_one_line(here, capsys, option, value, words):
    with pytest.raises(SystemExit):
        run(command("fit", option, value))
    said = capsys.readouterr().err.strip()
    assert words in said
    assert "\n" not in said
