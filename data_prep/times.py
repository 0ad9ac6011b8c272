"""Times of interactions: numbers, ISO dates, or whatever form the user names."""

from __future__ import annotations

import polars as pl

_ISO = r"^\s*\d{4}(-\d{1,2}-|/\d{1,2}/|\.\d{1,2}\.|\d{4}T)\d"
"""How a date begins whose year stands first: then comes the month."""


def numbers(order: pl.Expr) -> pl.Expr:
    """Numbers as they are; nothing for any other text."""
    number = order.cast(pl.Float64, strict=False)
    return pl.when(number.is_finite()).then(number)


def seconds(times: pl.Expr, timestamp_format: str | None = None) -> pl.Expr:
    """Dates and times as seconds since 1970, without a zone taken as UTC.

    Args:
        times: As text.
        timestamp_format: How they are written, such as ``%m/%d/%Y``; without it the year has to
            stand first, since 01/02/2024 is a day in January or in February.
    """
    known = times if timestamp_format else pl.when(times.str.contains(_ISO)).then(times)
    parsed = known.str.to_datetime(timestamp_format, strict=False, time_unit="us", time_zone="UTC")
    return parsed.dt.epoch("us").cast(pl.Float64) / 1e6


def end_in_a_year(order: pl.Series) -> bool:
    """Whether all numbers are dates such as 01312024, which do not stand in their order."""
    years = (order % 10_000).is_between(1900, 2099)
    return bool((years & order.is_between(1_011_900, 31_122_099)).all())
