"""A patterns file to its sections; what is wrong in it is named."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any, TypeVar

from rpp.prompts.evidence import EvidencePattern, EvidenceSource
from rpp.prompts.options import FormatSentence, HistoryPattern, ManualPrompt, ProfilePattern
from rpp.types import InputError
from rpp.yaml_files import read_yaml

Result = TypeVar("Result")


def parsed_with_base(path: Path) -> Any:
    """What a file says, on top of the file it is ``based_on``.

    Raises:
        InputError: If one of them is missing, no YAML, or the other one no whole file.
    """
    content = _parsed(path)
    if not isinstance(content, Mapping) or "based_on" not in content:
        return content
    base = _parsed(path.parent / text(content["based_on"]))
    if not isinstance(base, Mapping) or "based_on" in base:
        raise InputError(f"{path}: based_on: {content['based_on']} must be a whole patterns file")
    return {**base, **{key: value for key, value in content.items() if key != "based_on"}}


def _parsed(path: Path) -> Any:
    try:
        return read_yaml(path)
    except FileNotFoundError:
        raise InputError(
            f"no patterns file {path}: name one, e.g. conf/patterns/movies.yaml"
        ) from None


def keys(content: Any, kind: type[Any]) -> Mapping[str, Any]:
    """The content if it has the fields of a class and no others; those with a default may miss."""
    names = [field.name for field in fields(kind)]
    if not isinstance(content, Mapping):
        raise InputError(f"expected the keys {', '.join(names)}, found {content!r}")
    for key in content:
        if key not in names:
            near = difflib.get_close_matches(str(key), names, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(names)}"
            raise InputError(f"unknown key {key!r}: {hint}")
    for field in fields(kind):
        needed = field.default is MISSING and field.default_factory is MISSING
        if needed and field.name not in content:
            raise InputError(f"missing key {field.name!r}")
    return content


def section(given: Mapping[str, Any], name: str, read: Callable[[Any], Result]) -> Result:
    """What a section says; a mistake in it is told with its name."""
    try:
        return read(given[name])
    except InputError as error:
        raise InputError(f"in {name}: {error}") from None


def history_pattern(value: Any) -> HistoryPattern:
    """The section ``history``."""
    given: dict[str, Any] = {
        key: count(entry) if key == "start" else tuple(map(count, entries(entry)))
        for key, entry in keys(value, HistoryPattern).items()
    }
    return HistoryPattern(**given)


def profile_pattern(value: Any) -> ProfilePattern:
    """The section ``profile``."""
    given: dict[str, Any] = {
        key: tuple(map(texts, entries(entry))) if key == "choices" else text(entry)
        for key, entry in keys(value, ProfilePattern).items()
    }
    return ProfilePattern(**given)


def evidence_pattern(value: Any) -> EvidencePattern:
    """The section ``evidence``."""
    given = keys(value, EvidencePattern)
    return EvidencePattern(
        {str(name): evidence_source(each) for name, each in mapping(given["sources"]).items()},
        tuple(
            {str(name): count(k) for name, k in mapping(option).items()}
            for option in entries(given["options"])
        ),
    )


def evidence_source(value: Any) -> EvidenceSource:
    """A source of evidence."""
    given = keys(value, EvidenceSource)
    arguments = mapping(given.get("init_args", {}))
    grades = mapping(given.get("grades", {}))
    return EvidenceSource(
        text(given["sentence"]),
        text(given["class_path"]),
        dict(arguments),
        {text(word): number(bound) for word, bound in grades.items()},
    )


def manual_prompt(value: Any) -> ManualPrompt:
    """The section ``manual``."""
    given: dict[str, Any] = {
        key: texts(entry) if key == "profile" else count(entry)
        for key, entry in keys(value, ManualPrompt).items()
    }
    return ManualPrompt(**given)


def entries(value: Any) -> list[Any]:
    """A list, empty where nothing is given."""
    if not isinstance(value, list | None):
        raise InputError(f"expected a list, found {value!r}: begin every entry with a dash")
    return value or []


def mapping(value: Any) -> Mapping[str, Any]:
    """Keys and values."""
    if not isinstance(value, Mapping):
        raise InputError(f"expected keys and values, found {value!r}")
    return value


def count(value: Any) -> int:
    """A whole number."""
    if type(value) is not int:
        raise InputError(f"expected a whole number, found {value!r}")
    return value


def number(value: Any) -> float:
    """A number."""
    if type(value) not in (int, float):
        raise InputError(f"expected a number, found {value!r}")
    return float(value)


def text(value: Any) -> str:
    """A sentence."""
    if not isinstance(value, str):
        raise InputError(f"expected a sentence, found {value!r}: put it in quotes")
    return value.strip()


def texts(value: Any) -> tuple[str, ...]:
    """A list of sentences."""
    return tuple(map(text, entries(value)))


def format_sentences(value: Any) -> tuple[FormatSentence, ...]:
    """The section ``format``."""
    return tuple(map(format_sentence, entries(value)))


def format_sentence(value: Any) -> FormatSentence:
    """An output format in both wordings, or one for both."""
    if isinstance(value, str):
        return FormatSentence(value.strip(), value.strip())
    given = keys(value, FormatSentence)
    return FormatSentence(text(given["titles"]), text(given["identifiers"]))
