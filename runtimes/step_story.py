"""Why a step scored what it scored, and what came of it: for `graftline run --explain`."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate

from graftline.runtimes.control.choose import Cost, Offer


@dataclass(frozen=True)
class Considered:
    """A size that could have been chosen: rows of the sequence, root included, tokens that the step
    was expected to emit for it, milliseconds that it was expected to take."""

    rows: int
    tokens: float
    milliseconds: float

    @property
    def rate(self) -> float:
        """Expected tokens per millisecond."""
        return self.tokens / self.milliseconds


@dataclass(frozen=True)
class StepStory:
    """One step of one sequence. `past` positions were committed; `tokens` and `parents` are the
    tree that was scored, `path` its accepted rows, `fresh` the tokens that came of it. `proposed`
    rows were there to be chosen from, of the class `signal` (0: none). `kind`: plain, chain, tree
    or paid (drafted by a model). `expected` tokens of all sequences together, and
    `expected_milliseconds`, are what the controller believed, None where it knows no costs;
    `milliseconds` is what the step took, drafting and choosing included. `considered` are the
    sizes that it chose from, the root alone first. `computed_by` is the graph of a step that not
    all of the model may compute, in words; "" for any other.
    """

    past: int
    kind: str
    tokens: tuple[int, ...]
    parents: tuple[int, ...]
    path: tuple[int, ...]
    fresh: tuple[int, ...]
    proposed: int
    signal: int
    milliseconds: float
    expected: float | None
    expected_milliseconds: float | None
    considered: tuple[Considered, ...]
    computed_by: str = ""

    @property
    def why(self) -> str:
        """The choice in words."""
        if self.computed_by:
            return f"computed by {self.computed_by}; nobody drafts beside a schedule"
        if self.expected is None:
            return "step costs are not known: as many rows as are proposed, up to a fixed number"
        if not self.considered:
            return "nothing was proposed that could pay" if self.proposed > 1 else "no proposal"
        rows = len(self.tokens)
        plain = self.considered[0]
        near = min(self.considered, key=lambda one: abs(one.rows - rows))
        best = max(self.considered, key=lambda one: one.rate)
        gain = [one.rate / plain.rate for one in (near, best)]
        if rows == 1:
            return f"at best {gain[1]:.2f} times plain, with {best.rows} rows: not enough"
        told = f"{near.rows} rows promise {gain[0]:.2f} times plain"
        if best.rows == near.rows:
            return f"{told}, the most of up to {self.considered[-1].rows}"
        return f"{told}; {best.rows} rows {gain[1]:.2f}, less what must be sure"


def considered(offer: Offer | None, total: int, cost: Cost) -> tuple[Considered, ...]:
    """The sizes that an offer allows, in a step that scores `total` rows without it."""
    if offer is None or not offer.gains:
        return ()
    sizes = [Considered(1, 1.0, cost(total, False))]
    for more, tokens in enumerate(accumulate(offer.gains), 1):
        rows = more * offer.size
        took = cost(total + rows, 1 + rows > offer.straight) * offer.slower
        took += more * offer.price + offer.shared
        sizes.append(Considered(1 + rows, 1.0 + tokens, took))
    return tuple(sizes)
