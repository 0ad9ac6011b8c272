"""Rows of the results table: scores with intervals, paired differences, expense."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import polars as pl
from torch import Tensor

from rpp.metrics import (
    CHANCE,
    METRICS,
    Interval,
    chance,
    mean_interval,
    paired_difference,
    paired_p_value,
)
from rpp.ranker import Counters

Figures = tuple[float, float, float]
"""NDCG@1, @5 and @10."""


@dataclass(frozen=True)
class Expense:
    """What a method has used up.

    Attributes:
        prompts: Prompts it needed, to decide and for the test users.
        calls: How many of them the language model answered; the others were in the cache.
        prompt_tokens: Tokens of these calls.
        reply_tokens: Likewise.
        cost: Their price by the rates of an API; 0 where none are given.
        seconds: Wall time.
    """

    prompts: int = 0
    calls: int = 0
    prompt_tokens: int = 0
    reply_tokens: int = 0
    cost: float = 0.0
    seconds: float = 0.0

    @classmethod
    def between(
        cls, before: Counters, after: Counters, seconds: float, n_prompts_reused: int = 0
    ) -> Expense:
        """Of what happened between two readings of the counters."""
        calls = after.calls - before.calls
        return cls(
            calls + after.cache_hits - before.cache_hits + n_prompts_reused,
            calls,
            after.prompt_tokens - before.prompt_tokens,
            after.reply_tokens - before.reply_tokens,
            after.cost - before.cost,
            seconds,
        )


@dataclass(frozen=True)
class Row:
    """One method of the table.

    Attributes:
        name: The method's.
        scores: Every metric with its interval over users.
        gain: NDCG@10 less that of the reference, over the same users; ``None`` for itself.
        p_value: Of no such difference, two-sided, not corrected for the number of rows.
        expense: What it has used up, where that is known row by row.
        valid: Share of replies that named every candidate; ``None`` without a language model.
        published: The paper's figures, where it has them.
    """

    name: str
    scores: Mapping[str, Interval]
    gain: Interval | None = None
    p_value: float | None = None
    expense: Expense | None = None
    valid: float | None = None
    published: Figures | None = None


def make_row(name: str, ranks: Tensor, reference: Tensor | None, **known: Any) -> Row:
    """A row from the ranks of its targets.

    Args:
        name: The method's.
        ranks: Rank of every user's target, ``(B,)``.
        reference: Those of the reference; ``None`` for the reference itself.
        known: The other attributes of :class:`Row`.
    """
    gain = p_value = None
    if reference is not None:
        ours, theirs = (METRICS["ndcg@10"](each) for each in (ranks, reference))
        gain, p_value = paired_difference(ours, theirs), paired_p_value(ours, theirs)
    scores = {metric: mean_interval(values(ranks)) for metric, values in METRICS.items()}
    return Row(name, scores, gain, p_value, **known)


def as_frame(rows: Sequence[Row], n_candidates: int) -> pl.DataFrame:
    """The table with one column per number; chance last."""
    lines: list[dict[str, Any]] = []
    for row in rows:
        line: dict[str, Any] = {"method": row.name}
        for metric, value in row.scores.items():
            line |= {metric: value.mean, f"{metric}_low": value.low, f"{metric}_high": value.high}
        gain = row.gain or Interval(*[float("nan")] * 3)
        line |= {"gain": gain.mean, "gain_low": gain.low, "gain_high": gain.high}
        line |= {"p_value": row.p_value, "valid": row.valid}
        expense = asdict(row.expense or Expense())
        asked = row.valid is not None  # a recommender takes time alone
        line |= {key: v if asked or key == "seconds" else None for key, v in expense.items()}
        published = row.published or (None,) * 3
        line |= dict(zip(("paper_ndcg@1", "paper_ndcg@5", "paper_ndcg@10"), published, strict=True))
        lines.append(line)
    frame = pl.DataFrame(lines, infer_schema_length=None)
    last = pl.DataFrame([{"method": CHANCE} | {m: chance(m, n_candidates) for m in METRICS}])
    return pl.concat([frame, last], how="diagonal_relaxed")


def as_record(row: Row) -> dict[str, Any]:
    """A row as JSON has it."""
    return asdict(row) | {
        "scores": {metric: value._asdict() for metric, value in row.scores.items()},
        "gain": None if row.gain is None else row.gain._asdict(),
    }
