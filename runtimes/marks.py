"""What was expected of steps."""

from __future__ import annotations

from typing import NamedTuple


class Marks(NamedTuple):
    """Sums over steps, each with all its sequences: seconds that choosing took, steps and sequences
    in them, and the tokens and milliseconds that were expected, with what as many tokens would have
    taken without drafts."""

    seconds: float = 0.0
    steps: float = 0.0
    sequences: float = 0.0
    tokens: float = 0.0
    milliseconds: float = 0.0
    plain: float = 0.0

    def plus(self, other: Marks, sign: int = 1) -> Marks:
        """Both together; with a `sign` of -1 what has come since the other."""
        return Marks(*(a + sign * b for a, b in zip(self, other, strict=True)))

    @property
    def predicted(self) -> float | None:
        """Tokens per second that were expected; None: nothing was."""
        return 1e3 * self.tokens / self.milliseconds if self.milliseconds else None

    @property
    def speedup(self) -> float | None:
        """What was expected, over what was expected of steps without drafts."""
        return self.plain / self.milliseconds if self.milliseconds else None
