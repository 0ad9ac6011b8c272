"""Rankings for users of a file: JSON lines in, JSON lines out; no prepared data are needed."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

from rpp.personaliser import Personaliser
from rpp.recommendation import Query, Recommendation
from rpp.types import InputError

BATCH_SIZE = 64
"""Users asked together."""


def predict_file(personaliser: Personaliser, source: Path, target: Path) -> int:
    """Rank the candidates of every user of a file.

    Args:
        personaliser: The policy.
        source: A JSON object a line, with the fields of :class:`rpp.recommendation.Query`.
        target: The file to write: a line per user, in their order.

    Returns:
        Number of users.

    Raises:
        InputError: If a line cannot be understood; nothing is asked then.
    """
    queries = [*_queries(personaliser, source)]
    target.parent.mkdir(parents=True, exist_ok=True)
    with target.open("w", encoding="utf-8") as file:
        for start in range(0, len(queries), BATCH_SIZE):
            some = queries[start : start + BATCH_SIZE]
            for query, found in zip(some, personaliser.rank_many(some), strict=True):
                row = prediction(query.user, found)
                file.write(json.dumps(row, ensure_ascii=False) + "\n")
    return len(queries)


def prediction(user: str | int | None, found: Recommendation) -> dict[str, Any]:
    """A recommendation in the form of ``predictions.jsonl``."""
    patterns, ranking = found.prompt.patterns, found.ranking
    return {
        "user": user,
        "sentences": {name: chosen.sentence for name, chosen in patterns.items()},
        "probabilities": {
            name: [option.probability for option in chosen.options]
            for name, chosen in patterns.items()
            if chosen.options[0].probability is not None
        },
        "prompt": found.prompt.text,
        "ranking": [item.title for item in ranking],
        "items": [item.id for item in ranking],
        "scores": [item.score for item in ranking],
        "status": found.status,
        "reply": found.reply,
    }


def _queries(personaliser: Personaliser, source: Path) -> Iterator[Query]:
    known = {field.name for field in fields(Query)}
    try:
        lines = source.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{source} cannot be read ({error}): name a file of JSON lines") from error
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            given = json.loads(line)
            if not isinstance(given, dict) or not {"candidates"} <= given.keys() <= known:
                raise InputError(f"give an object with candidates, of {', '.join(sorted(known))}")
            query = Query(**{"history": [], **given})
            personaliser.understand(query)
        except (ValueError, TypeError, InputError) as error:
            raise InputError(f"{source}, line {number}: {error}") from error
        yield query
