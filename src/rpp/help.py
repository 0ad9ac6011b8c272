"""Help on the command line: the options most runs use, and what a mistyped one may have meant."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from pydoc import locate

from jsonargparse import ArgumentParser

SHORT = """\
python train.py SUBCOMMAND --config conf/rpp.yaml [--config OVERLAY ...] [--OPTION VALUE ...]

  fit       train the policy: checkpoints/NAME, logs/NAME
  validate  score the checkpoint on the validation users
  test      the table of results: results/NAME
  predict   prompt and ranking of every test user: results/NAME/predictions.jsonl

Every key of the YAML files is an option, and options win over files, later files over earlier
ones. Those most runs use:

  --config FILE                   conf/rpp.yaml, then overlays: data, language model, your own
  --name NAME                     names logs, checkpoints and results
  --ckpt_path last                fit: go on after the last whole epoch; others: last or a file
  --seed_everything N             seed of the run
  --trainer.max_epochs N          epochs of training
  --data.n_train_users N          likewise n_validation_users, n_test_users
  --data.batch_size N             users per update
  --model.patterns FILE           the sentences to choose from
  --model.history_lengths LIST    the history lengths to choose from
  --model.n_draws N               prompts for each training user in an epoch
  --model.learn LIST              only these patterns are learnt, for example '[reasoning]'
  --environment.llm.model NAME    the language model: a hub id, a folder or a server's model
  --environment.decoding NAME     generate, constrained, first_token or likelihood
  --environment.max_calls N       stop after so many calls to the language model

The rest:

  python train.py fit --config conf/rpp.yaml --print_config     what is set, as one file
  python train.py fit --help_all                                trainer and environment
  python train.py fit --model.help rpp.learners.logged.RewardModelLearner
  python train.py fit --data.help rpp.data.datamodule.EpisodeDataModule
  python train.py fit --environment.llm.help rpp.llms.huggingface.HuggingFaceLanguageModel
"""

ALL = "--help_all"
"""The option that shows what Lightning's own help shows."""

NOISE = re.compile(
    r"(- )?(Expected a <class 'NoneType'>|Does not validate against .*|Subtypes: .*|Errors:"
    r"|Given value.*|Parser key .*|Problem with given class_path '.*':|)"
)
"""Lines of the parser's messages that tell a user nothing."""


def answer_help(arguments: Sequence[str]) -> None:
    """Print the short help and end, if it is asked for."""
    if any(word in ("-h", "--help") for word in arguments):
        print(SHORT)  # noqa: T201
        raise SystemExit(0)


def explained(message: str, known: Iterable[str], arguments: Sequence[str]) -> str:
    """A message of the parser as one sentence.

    Args:
        message: The parser's words, of many lines.
        known: The options of the subcommand, with their groups.
        arguments: The command line, whose YAML files may hold the mistake.
    """
    group = ".".join(re.findall(r'Parser key "(.+?)":', message))
    if found := re.search(r"class_path '(\S+)':\s+Option '(\S+)' is not accepted", message):
        return _mistyped(found[2], _options_of(found[1]), arguments, f"{group}.")
    if found := re.search(r"(?:unrecognized arguments: --|not accept option ')([^\s'=]+)", message):
        return _mistyped(found[1], known, arguments)
    lines = (line.strip() for line in message.splitlines())
    kept = [line.removeprefix("- ") for line in lines if not NOISE.fullmatch(line)]
    return f"{group}: {'; '.join(kept)}" if group else "; ".join(kept)


def _options_of(class_path: str) -> list[str]:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(locate(class_path), fail_untyped=False)
    return list(parser.get_defaults().keys())


def _mistyped(option: str, known: Iterable[str], arguments: Sequence[str], group: str = "") -> str:
    """What an unknown option may have meant, and the line of the file that has it."""
    known = list(known)
    heads = {name.split(".")[0] for name in known}
    head = option.split(".")[0]
    names = known if head in heads else [*heads, *known]
    near = difflib.get_close_matches(option if head in heads else head, names, n=1)
    place = _place(option.split(".")[-1 if head in heads else 0], arguments)
    hint = f"did you mean {group}{near[0]}?" if near else "see --help"
    return f"there is no option {group}{option}{place}: {hint}"


def _place(key: str, arguments: Sequence[str]) -> str:
    """File and line of a key, if a file of the command line has it."""
    for word in arguments:
        path = Path(word.partition("=")[2] or word)
        if path.suffix not in (".yaml", ".yml") or not path.is_file():
            continue
        for number, line in enumerate(path.read_text(encoding="utf-8-sig").splitlines(), 1):
            if re.match(rf"[\s{{-]*{re.escape(key)}\s*:", line):
                return f" ({path}, line {number})"
    return ""
