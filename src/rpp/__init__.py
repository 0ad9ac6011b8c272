"""Reinforced Prompt Personalization: per-user prompts for ranking with frozen language models."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rpp.personaliser import Personaliser as Personaliser
    from rpp.recommendation import Query as Query


def __getattr__(name: str) -> Any:
    """What applications use, imported when asked for: it takes torch and transformers."""
    if name == "Personaliser":
        from rpp.personaliser import Personaliser

        return Personaliser
    if name == "Query":
        from rpp.recommendation import Query

        return Query
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
