"""Where a value lies along one axis of the latents, and which of its elements a window gets right.

A window is a run of the graph on a stretch of the latents in place of all of them. Near its two
ends an element may depend on latents outside; the others are the whole run's. A stretch begins at a
multiple of the graph's step, so that every value begins at a whole element.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from fractions import Fraction
from math import lcm


@dataclass(frozen=True)
class Blocked:
    """Why a value's elements depend on more than a stretch: the node, and what it does."""

    node: str
    reason: str
    merged: bool = False
    """Whether only the axis was lost: what is computed over it is the reason."""


@dataclass(frozen=True)
class Span:
    """A value with one `axis` along which it follows the latents. Run on n latents it has `ratio` *
    n + `extra` elements there; of a window's, those from `left` on and before `ratio` * n + `right`
    are the whole run's. `blocked`: none of them is, and why."""

    axis: int
    ratio: Fraction = Fraction(1)
    extra: int = 0
    left: int = 0
    right: int = 0
    blocked: Blocked | None = None

    def at(self, axis: int) -> Span:
        """The same elements along another axis."""
        return replace(self, axis=axis)

    def stopped(self, by: Blocked) -> Span:
        """The same, of which no window gets an element right; the first reason stands."""
        return self if self.blocked is not None else replace(self, blocked=by)

    def length(self, latents: int) -> int:
        """Elements along the axis for so many latents."""
        return int(self.ratio * latents) + self.extra


@dataclass(frozen=True)
class Reach:
    """What an operator reads: element q * `up` + p of its output reads those of its input from q *
    `down` + first up to, and without, q * `down` + end; (first, end) of each phase p < `up`."""

    up: int
    down: int
    phases: tuple[tuple[int, int], ...]

    def of(self, span: Span, extra: int) -> Span:
        """The output's span, which has `extra` elements more than ratio * n."""
        left, right = 0, extra
        for phase, (first, end) in enumerate(self.phases):
            wrong = -((first - span.left) // self.down) - 1  # the last q that reads too early
            left = max(left, wrong * self.up + phase + 1)
            missing = (span.right - end) // self.down + 1  # the first q that reads too late
            right = min(right, missing * self.up + phase)
        ratio = span.ratio * self.up / self.down
        return replace(span, ratio=ratio, extra=extra, left=left, right=right)


def joined(spans: Iterable[Span], node: str) -> Span:
    """The span of what combines several element by element, all of the same axis."""
    first, *others = spans
    for other in others:
        if (other.axis, other.ratio, other.extra) != (first.axis, first.ratio, first.extra):
            return first.stopped(Blocked(node, "its operands have different lengths"))
        left, right = max(first.left, other.left), min(first.right, other.right)
        first = replace(first, left=left, right=right, blocked=first.blocked or other.blocked)
    return first


def step_of(spans: Iterable[Span]) -> int:
    """The least number of latents that is a whole number of elements of every value."""
    return lcm(*(span.ratio.denominator for span in spans))
