"""The choice of a step's rows: expected tokens per millisecond, over all sequences together."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from operator import itemgetter
from typing import NamedTuple

MARGIN = 0.1
"""Tokens by which a step has to gain: what looks best of many sizes looks better than it is."""
BUDGET = 256
"""Most rows of a step, of all sequences together."""
SIZES = frozenset({*range(9), 10, 12, 16, 20, 24, 32, 48, 64, 96, 128, 192, 256})
"""Rows of a step of several sequences, where they can be cut: the first step of a size takes a
third of a step longer. What is taken whole, or still to be drafted, has the rows that it has."""

Cost = Callable[[int, bool], float]
"""Milliseconds of a step of so many rows in all, branching or not."""


@dataclass(slots=True)
class Offer:
    """What a sequence could score behind its root: the expected tokens of each further row, never
    rising, or the sum of `size` rows that are taken together or not at all. `straight`: rows up to
    which the tree is a chain; `slower`: factor on the cost of a step with this draft; `price`:
    milliseconds of making it, and `shared` those that all drafts of `maker` take together, however
    many they are."""

    sequence: int
    gains: Sequence[float]
    straight: int = 1 << 30
    slower: float = 1.0
    size: int = 1
    price: float = 0.0
    shared: float = 0.0
    maker: str = ""


class Terms(NamedTuple):
    """What a step allows: its sequences, most rows of each, committed positions of each (their
    mean), and the expected tokens below which a row need not be looked at."""

    batch: int
    room: int
    past: float
    cut: float


class Choice(NamedTuple):
    """Rows by sequence, where more than the root is scored; expected tokens and milliseconds of the
    step."""

    rows: dict[int, int]
    tokens: float
    milliseconds: float

    @property
    def rate(self) -> float:
        """Expected tokens per millisecond."""
        return self.tokens / self.milliseconds


def choose(offers: Sequence[Offer], batch: int, cost: Cost, total: int, least: int = 1) -> Choice:
    """The rows that bring most tokens per millisecond to `batch` sequences, which score `total`
    rows without any offer; none where that gains less than MARGIN tokens.

    Greedy: rows are taken by expected tokens per cost, the best first, and the best number of them
    is kept; chances never rise along a proposal, so that its rows are taken in order. Rows below
    `least` of a sequence are scored anyway. Plain numbers, because this runs between two steps.
    """
    plain = cost(total, False)
    row = max((cost(total + 8, False) - plain) / 8, 1e-9)
    items = [
        (gain / (one.size + one.price / row), gain, one) for one in offers for gain in one.gains
    ]
    items.sort(key=itemgetter(0), reverse=True)
    rows, shared = dict[int, int](), dict[str, float]()
    tokens, left = float(batch), sum([gain for _, gain, _ in items])
    margin = 0.0 if any([one.maker for one in offers]) else MARGIN  # prices are known by means
    best, worth = Choice({}, tokens, plain), (batch + margin) / plain
    slower, spent, branching = 1.0, 0.0, False
    for _, gain, one in items:
        known = rows.get(one.sequence, 1)
        rows[one.sequence] = known + one.size
        total += max(known + one.size - max(known, least), 0)
        slower, spent = max(slower, one.slower), spent + one.price
        shared[one.maker] = max(one.shared, shared.get(one.maker, 0.0))
        branching |= known + one.size > one.straight
        tokens, left = tokens + gain, left - gain
        took = cost(total, branching) * slower + spent + sum(shared.values())
        if total > BUDGET or (tokens + left) / took <= worth:
            break
        usual = batch == 1 or total in SIZES or one.size > 1 or one.price + one.shared > 0
        if usual and tokens / took > worth:
            best, worth = Choice(dict(rows), tokens, took), tokens / took
    return best
