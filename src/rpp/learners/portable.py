"""What a checkpoint carries beside its weights, so that the policy can be used without its data.

Learner and arguments, sentences, collaborative vectors, ids and titles: plain values and tensors,
which ``torch.load`` reads with ``weights_only``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rpp.arguments import described
from rpp.baselines import carried
from rpp.baselines.evidence import RecommenderEvidence
from rpp.data.directory import Directory
from rpp.data.vectors import CollaborativeVectors
from rpp.prompts.patterns import Patterns
from rpp.types import UNKNOWN, Episode, InputError, Item

if TYPE_CHECKING:
    from rpp.learners.policy import PromptPolicy

POLICY = "policy"
"""Key of a checkpoint."""


@dataclass(frozen=True)
class Carried:
    """A policy without its weights.

    Attributes:
        learner: Its class and arguments, or why they cannot be written down.
        summary: Name, fingerprint and settings of its data set, as far as the policy needs them.
        vectors: The vectors its states begin with.
        directory: Items and users of these vectors.
    """

    learner: Mapping[str, Any] | str
    summary: dict[str, Any]
    vectors: CollaborativeVectors
    directory: Directory


@dataclass(frozen=True)
class Moved:
    """A policy's rows of the items and users of data that have changed since its fit.

    Attributes:
        items: The policy's row by row of the data, or :data:`rpp.types.UNKNOWN`.
        users: Likewise.
    """

    items: Sequence[int]
    users: Sequence[int]

    @classmethod
    def between(cls, data: Directory, policy: Directory) -> Moved:
        """The rows of a policy's own directory for those of the data."""
        return cls(
            [policy.item_rows.get(name, UNKNOWN) for name in data.item_ids],
            [policy.user_rows.get(name, UNKNOWN) for name in data.user_ids],
        )

    def __call__(self, episodes: Sequence[Episode]) -> list[Episode]:
        """The same users with the policy's rows."""
        return [
            replace(
                episode,
                user=self.users[episode.user],
                history=self._items(episode.history),
                candidates=self._items(episode.candidates),
            )
            for episode in episodes
        ]

    def _items(self, items: Sequence[Item]) -> tuple[Item, ...]:
        return tuple(replace(item, index=self.items[item.index]) for item in items)

    def __str__(self) -> str:
        """Who and what is new."""
        n_users, n_items = self.users.count(UNKNOWN), self.items.count(UNKNOWN)
        return f"{n_users} users and {n_items} items"


def pack(learner: PromptPolicy[Any], directory: Directory) -> dict[str, Any]:
    """What a checkpoint is to carry."""
    settings = {name: learner.data_summary["settings"][name] for name in ("name", "n_candidates")}
    fingerprint = str(learner.data_summary["fingerprint"])
    return {
        "learner": _described(learner),
        "summary": {"fingerprint": fingerprint, "settings": settings},
        "users": learner.vectors.users,
        "items": learner.vectors.items,
        **{name: list(names) for name, names in asdict(directory).items()},
    }


def unpack(checkpoint: Mapping[str, Any]) -> Carried:
    """Read what :func:`pack` wrote.

    Raises:
        InputError: If the checkpoint carries nothing.
    """
    policy = checkpoint.get(POLICY)
    if not isinstance(policy, dict):
        raise InputError(
            "this checkpoint holds weights without what a policy needs besides, for it was written"
            " by an earlier version of rpp: fit again"
        )
    vectors = CollaborativeVectors(policy["users"], policy["items"])
    directory = Directory(policy["item_ids"], policy["titles"], policy["user_ids"])
    return Carried(policy["learner"], policy["summary"], vectors, directory)


def recall_evidence(
    checkpoint: Mapping[str, Any], patterns: Patterns, folder: Path
) -> RecommenderEvidence | None:
    """The recommenders of a policy as they were at its fit; ``None`` where no prompt needs them.

    Args:
        checkpoint: The policy's.
        patterns: Its options.
        folder: Where what recommenders learn is looked for, and kept if possible.

    Raises:
        InputError: If the checkpoint does not hold what they are fitted to.
    """
    if not patterns.needs_evidence:
        return None
    policy, content = unpack(checkpoint), checkpoint.get(carried.EVIDENCE)
    titles = policy.directory.titles
    return carried.unpack(content, patterns.evidence, titles, policy.vectors, folder)


def _described(learner: PromptPolicy[Any]) -> dict[str, Any] | str:
    """Class and arguments; the sentences as they are used, not the file they came from."""
    try:
        description = described(learner)
    except InputError as error:
        return str(error)
    used = {"patterns": learner.patterns.content}
    applied = dict.fromkeys(("learn", "n_sentences", "history_lengths"))
    description["init_args"] |= used | applied
    return description
