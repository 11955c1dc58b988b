"""A place in a controller's account, and what lies between two."""

from __future__ import annotations

from typing import NamedTuple


class Marks(NamedTuple):
    """Seconds that a controller has spent, and the tokens and milliseconds that it expected of the
    steps it chose, of all its sequences together."""

    seconds: float = 0.0
    tokens: float = 0.0
    milliseconds: float = 0.0

    def since(self, before: Marks) -> Marks:
        """What has come since."""
        return Marks(*(now - then for now, then in zip(self, before, strict=True)))

    @property
    def predicted(self) -> float | None:
        """Tokens per second that were expected; None: nothing was."""
        return 1e3 * self.tokens / self.milliseconds if self.milliseconds else None
