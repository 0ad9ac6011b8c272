"""Collaborative vectors of users and items, from any model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rpp.types import InputError


@dataclass(frozen=True)
class CollaborativeVectors:
    r"""Frozen vectors :math:`\mathbf{u}` and :math:`\mathbf{i}` of Eq. 3.

    Attributes:
        users: Shape ``(n_users, dim)``; all zeros for a user without training interactions.
        items: Shape ``(n_items, dim)``.

    Raises:
        InputError: If the two do not fit together.
    """

    users: Tensor
    items: Tensor

    def __post_init__(self) -> None:
        """Refuse vectors of different widths, of a wrong shape or that are not finite."""
        shapes = tuple(self.users.shape), tuple(self.items.shape)
        if self.users.ndim != 2 or self.items.ndim != 2 or shapes[0][1] != shapes[1][1]:
            raise InputError(
                f"user and item vectors have the shapes {shapes[0]} and {shapes[1]}: train them"
                " together"
            )
        if not (self.users.isfinite().all() and self.items.isfinite().all()):
            raise InputError("collaborative vectors are not finite: train with a smaller lr")

    @property
    def dim(self) -> int:
        """Width of the vectors."""
        return self.users.shape[1]

    def for_users(self, users: Sequence[int], histories: Sequence[Sequence[int]]) -> Tensor:
        """First state of a batch of users, shape ``(B, dim)``.

        A user without a vector, because they have no training interactions or are not in the
        table, gets the mean of the vectors of the items in their history; without any known item,
        the mean of all users with a vector.

        Args:
            users: Rows in the users table; any number outside it, such as -1, is an unknown user.
            histories: Items of each user; consulted for unknown users only.

        Raises:
            ValueError: If there is not one history per user.
        """
        if len(users) != len(histories):
            raise ValueError(f"{len(users)} users but {len(histories)} histories")
        rows = torch.as_tensor(list(users), dtype=torch.long, device=self.users.device)
        inside = (rows >= 0) & (rows < len(self.users))
        vectors = self.users[rows.where(inside, 0)]
        known = inside & vectors.any(dim=1)
        for place in (~known).nonzero().flatten().tolist():
            vectors[place] = self._stand_in(histories[place])
        return vectors

    def _stand_in(self, history: Sequence[int]) -> Tensor:
        """Vector of a user from their history only, shape ``(dim,)``."""
        items = [item for item in history if 0 <= item < len(self.items)]
        if items:
            return self.items[items].mean(dim=0)
        return self.users[self.users.any(dim=1)].mean(dim=0).nan_to_num()
