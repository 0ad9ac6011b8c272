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

EARLIER = "left_out_earlier"
"""Of other data sets, by the adapters that an adapter began with."""


def marks(user_ids: Iterable[str]) -> list[str]:
    """Short hashes of user names, sorted, so that a published adapter contains no names."""
    return sorted({hashlib.sha256(name.encode()).hexdigest()[:12] for name in user_ids})


def left_out(adapter: str) -> dict[str, set[str]]:
    """Hashes of the users that an adapter was not tuned on, by data set; empty if not recorded.

    Those of an adapter that it began with are among them, if that one learnt from other data.

    Args:
        adapter: The adapter's folder.

    Raises:
        InputError: If the file beside the adapter cannot be read.
    """
    path = Path(adapter, METADATA_FILE)
    if not path.is_file():
        return {}
    try:
        about = json.loads(path.read_text(encoding="utf-8"))
        own = {about[DATA]: about[LEFT_OUT]} if LEFT_OUT in about else {}
        return {name: set(users) for name, users in (about.get(EARLIER, {}) | own).items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
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
    known = left_out(adapter).get(data)
    return 0 if known is None else len(set(marks(user_ids)) - known)
