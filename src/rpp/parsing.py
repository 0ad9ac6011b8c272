"""A reply to candidate positions."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, cast

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

    Reasoning between tags is no answer. A line that holds a candidate's title, with or without
    its year, is that candidate, and a number before it only its rank; longer titles are found
    first, several on one line in the order they stand there. A bare identifier counts as a
    candidate only where identifiers were asked for.

    Of several lists, a draft and its improvement for example, the last one that names every
    candidate counts, whatever its bullets are. Where none is complete, lists without a candidate
    in common are read as one, else the list counts that names most candidates, the last of those
    that name equally many. Prose around lists does not count.

    Args:
        reply: The text that came back.
        candidates: The items, in the order shown.
        identifiers: Whether the prompt asked for identifiers.

    Returns:
        Positions in ``candidates``, each at most once, and the number of lines that are not
        blank and name no candidate.
    """
    names = _names(candidates)
    positions = {identifier(k): k for k in range(len(candidates))} if identifiers else {}
    n_nameable = len(candidates) if identifiers else len(set(names.values()))
    answer = without_reasoning(reply)
    read = [
        (text, _read_line(text, at, names, positions, n_nameable))
        for at, text in enumerate(answer.splitlines())
    ]
    # the others are blank, or a rule such as ---
    lines = [line for text, line in read if line.named or any(map(str.isalnum, text))]
    return _choose(lines, n_nameable), sum(not line.named for line in lines)


# -- reasoning -----------------------------------------------------------------------------------

_REASONING = re.compile(
    r"(?:<\|?|◁|\[(?=/?THINK\]))(?P<end>/|end_of_)?(?:begin_of_)?(?:seed:)?"
    r"(?P<name>think(?:ing)?|thoughts?|reason(?:ing)?|reflect(?:ion)?|analysis|scratch_?pad"
    r"|rationale|inner_?monologue|chain_of_thought|cot|deliberation|planning|draft)"
    r"(?:\s[^<>]*)?\|?[>▷\]]"
    r"|<\|channel\|>\s*(?:analysis|commentary)[^<]*<\|message\|>"
    r"|(?P<final><\|channel\|>\s*final[^<]*<\|message\|>|assistantfinal)",
    re.IGNORECASE,
)
"""Tags between which models reason: those of their chat templates, and usual ones of prompts."""

_ANSWER_TAG = re.compile(
    r"</?(?:final_?)?(?:answer|output|response|ranking|result)>", re.IGNORECASE
)


def without_reasoning(reply: str) -> str:
    """A reply without what stands between reasoning tags.

    Reasoning that was cut off reaches to the end. An end without a beginning ends what the
    prompt's template began, so nothing before it counts.
    """
    kept: list[str] = []
    start, inside = 0, ""
    for tag in _REASONING.finditer(reply):
        kind = (tag["name"] or "channel")[:5].casefold()  # "think" may end with "thinking"
        if tag["end"] or tag["final"]:
            if inside in ("", kind):
                kept = kept if inside else []
                start, inside = tag.end(), ""
        elif not inside:
            kept.append(reply[start : tag.start()])
            inside = kind
    if not inside:
        kept.append(reply[start:])
    return _ANSWER_TAG.sub("\n", "\n".join(kept))


# -- lines ---------------------------------------------------------------------------------------

Kind = Literal["number", "letter", "bullet", "plain", "whole list", "prose"]


@dataclass(frozen=True)
class _Line:
    """A line and the candidates it names.

    Attributes:
        at: Its place among all lines, blank ones included.
        kind: What opens it; ``plain`` is nothing but a title, ``whole list`` all candidates.
        number: Its number, or 0.
        named: Positions of the candidates, in the order they stand there.
    """

    at: int
    kind: Kind
    number: int
    named: list[int]


_MARKER = re.compile(
    r"^\W*(?P<number>\d{1,3})\s*[.):\]\-](?!\d)"
    r"|^\W*(?P<letter>(?:[A-Z]{1,2}|[IVX]{1,4})\s*[.):\]\-]|(?:[a-z]|[ivx]{1,4})[.)\]])(?!\w)"
    r"|^\s*(?P<bullet>[-*\u2022])"
)
_BULLET = re.compile(r"^\s*(?P<bullet>[-*\u2022])")
"""A numbered, lettered or bulleted line; "L.A. Confidential" and "X-Men" are none."""


def _read_line(
    text: str, at: int, names: Mapping[str, int], positions: Mapping[str, int], n_nameable: int
) -> _Line:
    named, fills = _titles_in(text, names)
    if not named and positions:
        named, fills = _identifiers_in(text, positions)
    marker = _MARKER.match(text)
    if marker and marker.lastgroup != "bullet" and _begins_with_title(text, named, names):
        marker = _BULLET.match(text)
    sort = marker.lastgroup if marker else None
    number = int(marker["number"]) if marker and sort == "number" else 0
    kind = cast(Kind, sort or ("plain" if fills else "prose"))
    if len(set(named)) == n_nameable > 1 and (marker or _is_list(text, named, names)):
        kind = "whole list"
    return _Line(at, kind, number, named)


def _begins_with_title(text: str, named: Sequence[int], names: Mapping[str, int]) -> bool:
    """Whether what looks like a number or letter of a list is the beginning of a title."""
    line = f"{normalise(text)} "
    return any(line.startswith(f"{name} ") for name, k in names.items() if k in named[:1])


_SEPARATORS = re.compile(r"(?:\s|\d{1,3}|and|then|\0)*")


def _is_list(text: str, named: Sequence[int], names: Mapping[str, int]) -> bool:
    """Whether nothing but separators stands between titles, and before them at most a heading."""
    _, _, rest = text.rpartition(":") if ":" in text and len(named) > 1 else ("", "", text)
    for candidate in (rest, text):
        line = f" {normalise(candidate)} "
        for name in sorted(names, key=lambda name: -len(name)):
            if names[name] in named:
                line = line.replace(f" {name} ", " \0 ")
        if line.count("\0") >= len(named) and _SEPARATORS.fullmatch(line):
            return True
    return False


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
_IDENTIFIER = re.compile(r"^(?:[A-Za-z]{1,2}|[IVXivx]{1,4})[.):\-]\s*")
_YEAR = re.compile(r"\(\d{4}\)")
_REMARK = re.compile(r"\s(?:[\-–—:]|\((?!\d{4}\)))")
"""Where a remark begins: a dash, a colon, a parenthesis that holds no year."""


def _titles_in(line: str, names: Mapping[str, int]) -> tuple[list[int], bool]:
    """Positions of the titles a line holds, in their order, and whether one fills the line."""
    unranked = _RANK.sub("", line)
    bare = _IDENTIFIER.sub("", unranked)
    without_remark = [_REMARK.split(text, maxsplit=1)[0] for text in (line, unranked, bare)]
    for text in (line, unranked, bare, *without_remark):
        for version in (text, _YEAR.sub("", text)):
            if (whole := normalise(version)) in names:
                return [names[whole]], True
    return _titles_within(f" {normalise(line)} ", names), False


def _titles_within(text: str, names: Mapping[str, int]) -> list[int]:
    """Positions of the titles that stand between other words, the longest found first."""
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


def _identifiers_in(line: str, positions: Mapping[str, int]) -> tuple[list[int], bool]:
    """Positions of the identifiers a line holds, and whether nothing else stands there.

    Either it consists of nothing but ranks and identifiers, or one opens it, followed by a sign.
    """
    words = re.findall(r"\w+", line)
    if all(word in positions or word.isdigit() for word in words):
        return [positions[word] for word in words if word in positions], True
    opening = re.match(r"^\W*(?:\d+\s*[.):\-]\s*)?([A-Z]{1,2})\s*[.):\-]", line)
    return [positions[opening[1]]] if opening and opening[1] in positions else [], False


# -- lists ---------------------------------------------------------------------------------------


@dataclass
class _List:
    """Lines of one kind that belong together."""

    kind: Kind
    lines: list[_Line] = field(default_factory=list)

    @property
    def named(self) -> list[int]:
        """Candidates in the order named, as often as they are."""
        return [k for line in self.lines for k in line.named]

    def order(self, n_nameable: int) -> list[int]:
        """Each candidate once: where it is named first.

        Without numbers nothing tells where a draft ends and the list begins, so that the last
        candidates count if these are all.
        """
        last = self.named[-n_nameable:] if n_nameable else []
        if self.kind != "number" and len(set(last)) == n_nameable:
            return last
        return list(dict.fromkeys(self.named))


def _choose(lines: Sequence[_Line], n_nameable: int) -> list[int]:
    """The order of the list that counts."""
    lists = [each for each in _lists(lines) if each.named]
    orders = [each.order(n_nameable) for each in lists]
    complete = [order for order in orders if len(order) == n_nameable]
    if complete:
        return complete[-1]
    if all(each.kind == "plain" for each in lists):
        return list(dict.fromkeys(k for line in lines for k in line.named))
    listed = sorted((line for each in lists for line in each.lines), key=lambda line: line.at)
    together = list(dict.fromkeys(k for line in listed for k in line.named))
    if sum(map(len, orders)) == len(together):
        return together
    return max(reversed(orders), key=len)


def _lists(lines: Sequence[_Line]) -> list[_List]:
    """The lists, by their ends; lines of another kind may stand in between, remarks for example."""
    lists: list[_List] = []
    latest: dict[Kind, _List] = {}
    following = [*(line.number for line in lines if line.kind == "number"), 0][1:]
    for line in lines:
        if line.kind == "prose":
            continue
        current = latest.get(line.kind)
        after = following.pop(0) if line.kind == "number" else 0
        if current is None or line.kind == "whole list" or _begins_anew(current, line, after):
            current = latest[line.kind] = _List(line.kind)
            lists.append(current)
        current.lines.append(line)
    return sorted(lists, key=lambda each: each.lines[-1].at)


def _begins_anew(current: _List, line: _Line, after: int) -> bool:
    """Whether a line begins another list of its kind; ``after`` is the next line's number."""
    if line.kind == "number":
        numbers = [each.number for each in current.lines]
        return line.number == 1 and (after == 2 or (1 in numbers and numbers[-1] > 1))
    interrupted = line.at > current.lines[-1].at + 1
    return interrupted and not set(line.named).isdisjoint(current.named)
