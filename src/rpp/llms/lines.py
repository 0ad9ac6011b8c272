"""State of constrained decoding: every line exactly once, in any order."""

from __future__ import annotations

from collections.abc import Sequence


class Lines:
    """The remaining lines of a reply, and the tokens of the current one.

    Args:
        lines: Tokens of every line, its line break included, so that none is a prefix of another.
        first: The same lines as tokenised at the beginning of a reply, if that differs.
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
        """Allowed tokens: the next one of every unused line with the current prefix."""
        at = len(self._open)
        return sorted({self._lines[k][at] for k in self._left if self._lines[k][:at] == self._open})

    def write(self, token: int) -> None:
        """Append an allowed token."""
        self._open.append(token)
        if self._open in (lines := [self._lines[k] for k in self._left]):
            self.order.append(self._left.pop(lines.index(self._open)))
            self._open = []
            self._lines = self._later

    def force(self) -> list[int]:
        """Append the forced tokens and return them; empty if no choice is left."""
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
        """Whether the order is decided."""
        return not self._left
