"""What users chose, beside what they were shown: a log by which a policy in use is judged."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from time import time
from typing import Any

from rpp.recommendation import Query, Recommendation

RANKED, CHOSEN = "ranked", "chosen"
"""Kinds of records: one for every ranking served, one for every choice told."""


def append(path: Path, record: Mapping[str, Any]) -> None:
    """Append a record to a log: the one place that writes it.

    A line is written at once, so that several processes may write to one file.

    Args:
        path: A file of JSON lines, made if it is missing.
        record: Plain values.
    """
    line = json.dumps({"time": time(), **record}, ensure_ascii=False) + "\n"
    log = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    try:
        os.write(log, line.encode())
    finally:
        os.close(log)


def ranked(request_id: str, query: Query, found: Recommendation) -> dict[str, Any]:
    """The record of a ranking."""
    return {
        "kind": RANKED,
        "request_id": request_id,
        **asdict(query),
        "actions": {name: each.action for name, each in found.prompt.patterns.items()},
        "n_steps": found.prompt.n_steps,
        "prompt": found.prompt.text,
        "ranking": [{"id": item.id, "title": item.title} for item in found.ranking],
        "status": found.status,
    }


def chosen(request_id: str, item: str | int) -> dict[str, Any]:
    """The record of a choice."""
    return {"kind": CHOSEN, "request_id": request_id, "item": item}


def rewards(path: Path) -> Iterator[dict[str, Any]]:
    r"""The rankings of a log that a user has chosen from, each with its reward.

    .. math:: r = 1 / \log_2(1 + \text{rank of the choice})

    which is NDCG with the choice as target. A choice that is in no ranking is left out.

    Args:
        path: The log.
    """
    shown: dict[str, dict[str, Any]] = {}
    with path.open(encoding="utf-8") as log:
        for record in map(json.loads, log):
            if record["kind"] == RANKED:
                shown[record["request_id"]] = record
                continue
            before = shown.get(record["request_id"])
            names = [(each["id"], each["title"]) for each in before["ranking"]] if before else []
            places = [place for place, both in enumerate(names, 1) if str(record["item"]) in both]
            if before and places:
                reward = 1 / math.log2(1 + places[0])
                yield before | {"item": record["item"], "reward": reward}
