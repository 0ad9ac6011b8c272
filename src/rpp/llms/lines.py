"""Constrained decoding as bookkeeping: every line exactly once, in an order yet to be chosen."""

from __future__ import annotations

from collections.abc import Sequence


class Lines:
    """The lines a reply still has to write, and how far the open one has got.

    Args:
        lines: Tokens of every line, its line break included, so that none begins another.
        first: The same lines as they are spelt at the beginning of a reply, where that differs.
    """

    def __init__(
        self, lines: Sequence[Sequence[int]], first: Sequence[Sequence[int]] | None = None
    ) -> None:
        self._later = [list(line) for line in lines]
        self._lines = self._later if first is None else [list(line) for line in first]
        self._left = list(range(len(lines)))
        self._open: list[int] = []
        self.order: list[int] = []

    def allowed(self) -> list[int]:
        """Tokens that may follow: the next of every unused line that begins like the open one."""
        at = len(self._open)
        return sorted({self._lines[k][at] for k in self._left if self._lines[k][:at] == self._open})

    def write(self, token: int) -> None:
        """Write an allowed token."""
        self._open.append(token)
        if self._open in (lines := [self._lines[k] for k in self._left]):
            self.order.append(self._left.pop(lines.index(self._open)))
            self._open = []
            self._lines = self._later

    def force(self) -> list[int]:
        """Write all that is no choice; returns it, and nothing if no choice is left at all."""
        written: list[int] = []
        while len(self._left) > 1:
            following = self.allowed()
            if len(following) > 1:
                return written
            written += following
            self.write(following[0])
        self.order += self._left
        self._left = []
        return []

    @property
    def finished(self) -> bool:
        """Whether the order is known."""
        return not self._left
