"""YAML files: a mistake is told with file and line, a key given twice is one."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from rpp.types import InputError


def read_yaml(path: Path) -> Any:
    """What a YAML file holds.

    Raises:
        InputError: If it is no text in UTF-8, no YAML, or gives a key twice.
        FileNotFoundError: If there is none.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise InputError(f"{path}: not valid YAML in UTF-8: save it in that encoding") from None
    except IsADirectoryError:
        raise InputError(f"{path} is a folder: name the YAML file in it") from None
    try:
        node = yaml.compose(text, yaml.SafeLoader)
        if node is not None:
            _check_keys(node, path, set())
        return yaml.safe_load(text)
    except yaml.MarkedYAMLError as error:
        raise InputError(f"{path}{_fault(error)}") from None
    except (yaml.YAMLError, ValueError) as error:  # a character or a date that cannot be
        raise InputError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None


def _fault(error: yaml.MarkedYAMLError) -> str:
    """Line, fault and remedy of what the parser refuses."""
    mark = error.problem_mark or error.context_mark
    line = f", line {mark.line + 1}" if mark else ""
    if r"'\t'" in str(error.problem):
        return f"{line}: not valid YAML (a tab stands before the text): indent with spaces"
    opened = re.fullmatch(
        r"while (?:parsing|scanning) a (flow \w+|quoted scalar)", error.context or ""
    )
    if opened and error.context_mark:
        sign = {"flow mapping": "brace {", "flow sequence": "bracket ["}.get(opened[1], "quote")
        return (
            f"{line}: not valid YAML ({error.problem}): close the {sign} of line"
            f" {error.context_mark.line + 1}, and quote sentences with : or #"
        )
    return f"{line}: not valid YAML ({error.problem}): quote sentences with : or #"


def _check_keys(node: yaml.Node, path: Path, seen: set[int]) -> None:
    """Refuse a mapping that gives a key twice, at any depth.

    YAML forbids it, and PyYAML keeps the last one without a word. Keys that come by a merge key
    (``<<``) may be given again.
    """
    if id(node) in seen:  # an anchor that was met before, or that holds itself
        return
    seen.add(id(node))
    if isinstance(node, yaml.SequenceNode):
        for child in node.value:
            _check_keys(child, path, seen)
    if isinstance(node, yaml.MappingNode):
        for child in (each for pair in node.value for each in pair):
            _check_keys(child, path, seen)
        _check_mapping(node, path)


def _check_mapping(node: yaml.MappingNode, path: Path) -> None:
    lines: dict[tuple[str, str], int] = {}
    for key, _ in node.value:
        if not isinstance(key, yaml.ScalarNode):
            continue
        name, line = (key.tag, key.value), key.start_mark.line + 1
        if name in lines:
            raise InputError(
                f"{path}: the key {key.value!r} stands twice in one section, in lines"
                f" {lines[name]} and {line}: put what belongs to it under one of them"
            )
        lines[name] = line
