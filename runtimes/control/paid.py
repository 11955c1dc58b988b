"""Drafts that cost time: whether to draft, how deep, and a budget for trying again."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate, pairwise
from typing import NamedTuple

from graftline.runtimes.chances.budget import Budget
from graftline.runtimes.control.choose import Offer, Terms
from graftline.runtimes.control.costs import Costs
from graftline.runtimes.drafter import Bid, PaidDrafter

HURDLE = 0.03
"""Share by which a sequence must gain by drafting."""
WEIGHT, HORIZON = 4.0, 48.0
"""Drafts that the first belief is worth, and over which means forget."""
DEBT_STEPS = 32
"""Steps over which catching up with the sequence is written off."""
EXPLORE = 0.01
"""Share of the time without drafts that pays for tries."""


class Means(NamedTuple):
    """Sums over drafts, forgetting slowly: their number, the accepted tokens, the rows behind the
    root, and the milliseconds."""

    drafts: float
    accepted: float
    rows: float
    milliseconds: float

    def plus(self, *draft: float) -> Means:
        """With one more draft of so many accepted tokens, rows and milliseconds."""
        keep = 1.0 - 1.0 / HORIZON
        return Means(*(keep * a + b for a, b in zip(self, (1.0, *draft), strict=True)))


class Paid:
    """Whether to draft: by what drafts of the class that the drafter foresees have brought and cost
    so far. How deep: a ratio of means is at its maximum when one goes on exactly while the next
    row's chance is at least the ratio times the row's cost (Dinkelbach 1967); so a bid carries, for
    each depth, the least chance worth drafting and the least worth scoring. While nothing is
    drafted, a share of the time pays for a draft of one token now and then. The first steps of all
    are plain, to compare with, and the first draft is of one token.
    """

    def __init__(self, name: str, costs: Costs) -> None:
        self._name, self._costs = name, costs
        self._classes: dict[int, Means] = {}
        self._steps = Means(0.0, 0.0, 0.0, 0.0)
        """Of drafted steps with all their sequences: tokens, and milliseconds of the whole step."""
        self._open: dict[int, tuple[int, float, float]] = {}
        """By sequence: of what class this step's draft is, its rows and milliseconds."""
        self.budget, self.trying = Budget(), False
        """What pays for tries, and whether this step's draft is one."""

    def offers(self, drafters: Sequence[tuple[int, PaidDrafter]], terms: Terms) -> list[Offer]:
        """A draft of each sequence, as such drafts have been."""
        made: list[Offer] = []
        if not self._costs.pace.settled(self._name) or terms.room < 2:
            return made
        slower = self._costs.pace.slower(self._name, "paid", terms.batch)
        for sequence, drafter in drafters:
            if drafter.rows > 1:
                drafts, accepted, rows, milliseconds = self._known(drafter, terms)
                price = milliseconds / drafts + drafter.debt() / DEBT_STEPS
                size = max(1, min(round(rows / drafts), terms.room - 1))
                gains = [accepted / drafts]
                made.append(Offer(sequence, gains, 1 << 30, HURDLE, slower, size, price))
        return made

    def try_again(self, drafters: Sequence[tuple[int, PaidDrafter]], terms: Terms) -> bool:
        """Save for a try, of a step in which nothing is drafted; True when there is enough."""
        if not self._costs.pace.settled(self._name) or terms.room < 2:
            return False
        plain, more = (self._cost(rows, terms) for rows in (1, 2))
        self.budget.save(EXPLORE * plain)
        price = sum(self._price(d, 1, terms) + d.debt() for _, d in drafters)
        self.trying = self.budget.pays(more - plain + price)
        return self.trying

    def bid(self, drafter: PaidDrafter, terms: Terms, rate: float) -> Bid:
        """What one sequence may spend, where the step is expected to bring `rate` tokens a
        millisecond."""
        if self.trying or not self._steps.drafts:
            return Bid.free(2)
        if self._steps.drafts > 8:
            rate = self._steps.accepted / self._steps.milliseconds
        rows = min(terms.room, drafter.rows)
        costs = [self._cost(row, terms) for row in range(1, rows + 1)]
        rate = max(rate, terms.batch / costs[0])
        rises = (after - before for before, after in pairwise(costs))
        keep = [0.0, *(rate * rise / terms.batch for rise in rises)]
        return Bid(rows, [k + rate * self._price(drafter, 1, terms) for k in keep], keep)

    def drafted(self, sequence: int, drafter: PaidDrafter, rows: int, terms: Terms) -> float:
        """A draft of `rows` rows behind the root was made; the milliseconds it took."""
        price, key = self._price(drafter, drafter.reads, terms), drafter.foresight()
        self._known(drafter, terms)
        self._open[sequence] = key, rows, price
        return price

    def expected(self, sequence: int) -> float:
        """Tokens that this step's draft is expected to bring; 0 where there is none."""
        if sequence not in self._open:
            return 0.0
        means = self._classes[self._open[sequence][0]]
        return means.accepted / means.drafts

    def learn(self, sequence: int, accepted: int) -> None:
        """Of a draft so many tokens were accepted."""
        if sequence in self._open:
            key, rows, milliseconds = self._open.pop(sequence)
            self._classes[key] = self._classes[key].plus(accepted, rows, milliseconds)

    def took(self, tokens: int, expected: float, step: float, bought: bool) -> None:
        """A step brought so many tokens, was to take `expected` milliseconds and took `step`."""
        if bought:
            self._steps = self._steps.plus(tokens, 0.0, expected)
        if self.trying:  # what is saved for tries pays for all of them
            self.budget.left += min(expected - step, 0.0)
        self.trying = False

    def _known(self, drafter: PaidDrafter, terms: Terms) -> Means:
        """What drafts of the class to come have been: at first, of the best size by the drafter's
        own prior."""
        key = drafter.foresight()
        if key not in self._classes:
            sums = enumerate(accumulate(drafter.hope(key)[1:]), 1)
            sizes = [(tokens, row, self._price(drafter, row, terms)) for row, tokens in sums]

            def rate(size: tuple[float, int, float]) -> float:
                return (1.0 + size[0]) / (self._cost(size[1] + 1, terms) / terms.batch + size[2])

            best = max(sizes, key=rate)
            self._classes[key] = Means(WEIGHT, *(WEIGHT * number for number in best))
        return self._classes[key]

    def _price(self, drafter: PaidDrafter, reads: float, terms: Terms) -> float:
        """Attention over what is committed costs a draft at most what it costs the target."""
        growth = self._costs.of(1, False, terms.past) - self._costs.of(1)
        return drafter.price(reads) + reads * max(growth, 0.0)

    def _cost(self, rows: int, terms: Terms) -> float:
        """Milliseconds of a step with so many rows of every sequence."""
        return self._costs.of(terms.batch * rows, False, terms.past, terms.batch)
