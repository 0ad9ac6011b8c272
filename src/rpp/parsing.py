"""A reply to candidate positions."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from rpp.prompts.compose import identifier
from rpp.types import Item, normalise

MIN_CONTAINED = 4
"""Titles shorter than this, once normalised, must fill their line: "It" is in many sentences.

So must titles that are numbers: 1984 is also a year.
"""


def parse_reply(
    reply: str, candidates: Sequence[Item], *, identifiers: bool
) -> tuple[list[int], int]:
    """Read which candidates a reply names, in the order it names them.

    A line that holds a candidate's title, with or without its year, is that candidate, and a
    number before it only its rank; longer titles are found first, several on one line in the
    order they stand there. A bare identifier counts as a candidate only where identifiers were
    asked for. Where a reply holds lists, only their lines count, not the prose around them; of
    several lists, a draft and its improvement for example, the one that names most candidates,
    the last of those that name equally many.

    Args:
        reply: The text that came back.
        candidates: The items, in the order shown.
        identifiers: Whether the prompt asked for identifiers.

    Returns:
        Positions in ``candidates``, each at most once, and the number of lines that are not
        blank and name no candidate.
    """
    names = _names(candidates)
    positions = {identifier(k): k for k in range(len(candidates))}
    lists: list[list[int]] = [[]]
    prose: list[int] = []
    unmatched = previous = 0
    started = False
    for line in reply.splitlines():
        if not normalise(line):
            continue
        found = _titles_in(line, names)
        if not found and identifiers:
            found = _identifiers_in(line, positions)
        unmatched += not found
        if not (item := _LIST_LINE.match(line)):
            prose += found
            continue
        number = int(item["number"] or 0)
        if number == 1 and started and previous > 1:
            lists.append([])
        started |= number == 1
        previous = number or previous
        lists[-1] += found
    if not any(lists):
        lists = [prose]
    distinct = [list(dict.fromkeys(named)) for named in lists]
    return max(reversed(distinct), key=len), unmatched


_LIST_LINE = re.compile(
    r"^\W*(?P<number>\d{1,2})\s*[.):\]\-](?!\d)"
    r"|^\W*[A-Z]{1,2}\s*[.):\]\-](?!\w)"
    r"|^\s*[-*\u2022]"
)
"""A numbered, lettered or bulleted line; "L.A. Confidential" and "X-Men" are none."""


def _names(candidates: Sequence[Item]) -> dict[str, int]:
    """What each candidate may be called: its title, and without the year where that is unique."""
    names = {normalise(item.title): k for k, item in enumerate(candidates)}
    short = [normalise(_YEAR.sub("", item.title)) for item in candidates]
    names |= {
        name: k for k, name in enumerate(short) if short.count(name) == 1 and name not in names
    }
    names.pop("", None)
    return names


_RANK = re.compile(r"^\W*(?:\d+\s*[.):\-]?\s*)?")
_IDENTIFIER = re.compile(r"^[A-Z]{1,2}\s*[.):\-]\s*")
_YEAR = re.compile(r"\(\d{4}\)")
_REMARK = re.compile(r"\s(?:[\-–—:]|\((?!\d{4}\)))")
"""Where a remark begins: a dash, a colon, a parenthesis that holds no year."""


def _titles_in(line: str, names: Mapping[str, int]) -> list[int]:
    """Positions of the titles a line holds, in the order they stand there."""
    unranked = _RANK.sub("", line)
    bare = _IDENTIFIER.sub("", unranked)
    heads = [_REMARK.split(text, maxsplit=1)[0] for text in (unranked, bare)]
    for text in (line, unranked, bare, *heads):
        for version in (text, _YEAR.sub("", text)):
            if (whole := normalise(version)) in names:
                return [names[whole]]
    text = f" {normalise(line)} "
    found: dict[int, int] = {}
    for name in sorted(names, key=lambda name: -len(name)):
        if len(name) < MIN_CONTAINED or name.isdecimal() or names[name] in found:
            continue
        if (start := text.find(f" {name} ")) < 0:
            continue
        found[names[name]] = start
        stop = start + len(name) + 1
        text = text[: start + 1] + "\0" * len(name) + text[stop:]
    return sorted(found, key=found.__getitem__)


def _identifiers_in(line: str, positions: dict[str, int]) -> list[int]:
    """Positions of the identifiers a line holds.

    Either it consists of nothing but ranks and identifiers, or one opens it, followed by a sign.
    """
    words = re.findall(r"\w+", line)
    if all(word in positions or word.isdigit() for word in words):
        return [positions[word] for word in words if word in positions]
    opening = re.match(r"^\W*(?:\d+\s*[.):\-]\s*)?([A-Z]{1,2})\s*[.):\-]", line)
    return [positions[opening[1]]] if opening and opening[1] in positions else []
