"""Users an adapter was not tuned on, recorded in the file beside it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path

from rpp.types import InputError

METADATA_FILE = "tuning.json"
"""Name of the file beside the weights of an adapter tuned here."""

DATA = "data"
LEFT_OUT = "left_out"


def marks(user_ids: Iterable[str]) -> list[str]:
    """Short hashes of user names, sorted, so that a published adapter contains no names."""
    return sorted({hashlib.sha256(name.encode()).hexdigest()[:12] for name in user_ids})


def left_out_of(adapter: str, data: str) -> set[str] | None:
    """Hashes of the users of a data set an adapter was not tuned on; ``None`` if not recorded.

    Args:
        adapter: The adapter's folder.
        data: Name of the data set.

    Raises:
        InputError: If the file beside the adapter cannot be read.
    """
    path = Path(adapter, METADATA_FILE)
    if not path.is_file():
        return None
    try:
        about = json.loads(path.read_text(encoding="utf-8"))
        return set(about[LEFT_OUT]) if LEFT_OUT in about and about[DATA] == data else None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{path} does not tell whom the adapter has learnt from ({error!r}): restore it, or"
            " remove it if the adapter was not tuned on this data set"
        ) from error


def n_learnt_from(adapter: str, data: str, user_ids: Iterable[str]) -> int:
    """Number of the given users an adapter may have been tuned on; 0 if not recorded.

    Args:
        adapter: The adapter's folder.
        data: Name of the data set.
        user_ids: The users to check.

    Raises:
        InputError: If the file beside the adapter cannot be read.
    """
    left_out = left_out_of(adapter, data)
    return 0 if left_out is None else len(set(marks(user_ids)) - left_out)
