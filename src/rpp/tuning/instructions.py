"""Ranking instructions from training interactions, for tuning an adapter.

The paper's pairs of "Instruction" and "Output" hold a history, a list of candidates and a ranked
list of titles (section 4.1). Two kinds are made here, both with prompts drawn from the whole
action space, so that the tuned model remains sensitive to its prompt:

- *packed histories*: the prompt lists no candidates, and the output continues with the user's next
  titles, one per line. The loss covers every title, including those in the prompt: dozens per
  sequence.
  With evidence, a sentence names candidates for the first of these titles.
- *rankings*: the prompt lists the candidates in a new random order; the output names the target
  first and then the others in random order, by title or by identifier. The loss covers only the
  output.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from rpp.data.episodes import draw_negatives
from rpp.prompts.compose import Display, compose, identifier
from rpp.prompts.evidence import Evidence
from rpp.prompts.patterns import Patterns
from rpp.types import Episode, Item

Span = tuple[int, int]
"""Index of the first character, and the index after the last."""


@dataclass(frozen=True)
class Instruction:
    """A prompt and the target reply.

    Attributes:
        prompt: The prompt's text.
        output: The reply.
        prompt_spans: Parts of the prompt in the loss: past titles, each with its line break.
        output_spans: Parts of the output in the loss.
        candidates: Titles of the target and then the others, for a listwise loss.
        is_whole: Whether the output is complete: a ranking is, a history continues.
    """

    prompt: str
    output: str
    prompt_spans: tuple[Span, ...]
    output_spans: tuple[Span, ...]
    candidates: tuple[str, ...]
    is_whole: bool = False


def draw_instruction(
    stretch: Sequence[Item],
    catalogue: Sequence[Item],
    seen: frozenset[int],
    patterns: Patterns,
    rng: np.random.Generator,
    *,
    n_candidates: int = 10,
    max_history: int = 20,
    display: Display | None = None,
    profile: Mapping[str, str] | None = None,
    past: Sequence[Item] = (),
    evidence: Evidence | None = None,
    user: int = 0,
    target_last: bool = False,
) -> Instruction:
    """One instruction from a sequence of a user's training interactions.

    Args:
        stretch: Items, oldest first, at least two. A packed history has a first part in the
            prompt and the rest in the reply; a ranking has the last item as target.
        catalogue: All items.
        seen: Items the user has a training interaction with: never a negative.
        patterns: The sentences to draw from.
        rng: Source of randomness.
        n_candidates: Target and negatives; fewer where the catalogue has no more.
        max_history: Longest history; the length is drawn from 1 to this.
        display: Packed histories if the candidates are not shown (the default), else rankings by
            title or identifier.
        profile: Attributes of the user.
        past: Items before the sequence: evidence knows them, the prompt does not tell them.
        evidence: Ranks the candidates for the pattern ``evidence``; not fitted to the target.
        user: Number of the user.
        target_last: A packed history has the last item as target, too.
    """
    display = display or Display(show_candidates=False)
    n_history = int(rng.integers(1, min(max_history, len(stretch) - 1) + 1))
    at = len(stretch) - 1 if display.show_candidates or target_last else n_history
    best_first = [stretch[at], *draw_negatives(stretch[at], catalogue, seen, n_candidates - 1, rng)]
    order = [int(k) for k in rng.permutation(len(best_first))]
    episode = Episode(
        user=user,
        history=(*past, *stretch[:at]),
        candidates=tuple(best_first[k] for k in order),
        withheld=order.index(0),
        profile=profile or {},
    )
    actions = [int(rng.integers(n)) for n in patterns.n_actions]
    (composed,) = compose([episode], patterns, [actions], [n_history], display, evidence=evidence)
    prompt = composed.text
    if not display.show_candidates:
        lines = [f" {item.title}" for item in stretch[at:]]
    elif display.answer == "titles":
        lines = [f" {item.title}" for item in best_first]
    else:
        lines = [identifier(order.index(k)) for k in range(len(best_first))]
    output, output_spans = _reply(lines, numbered=display.answer == "titles")
    learnt = () if display.show_candidates else _history_spans(prompt, composed.history)
    titles = tuple(item.title for item in best_first)
    return Instruction(prompt, output, learnt, output_spans, titles, display.show_candidates)


def _reply(lines: Sequence[str], *, numbered: bool) -> tuple[str, tuple[Span, ...]]:
    """The reply, and the span of each line after its number, with its line break."""
    text = ""
    spans = []
    for rank, line in enumerate(lines, start=1):
        if numbered:
            text += f"{rank}."
        start = len(text)
        text += f"{line}\n"
        spans.append((start, len(text)))
    return text, tuple(spans)


def _history_spans(prompt: str, history: Sequence[Item]) -> tuple[Span, ...]:
    """Spans of past titles in a prompt, each with the preceding blank and its line break."""
    spans = []
    end = 0
    for number, item in enumerate(history, start=1):
        mark = f"\n{number}."
        start = prompt.index(f"{mark} {item.title}", max(end - 1, 0)) + len(mark)
        end = start + len(f" {item.title}\n")
        spans.append((start, min(end, len(prompt))))
    return tuple(spans)
