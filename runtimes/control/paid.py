"""Drafts that cost time: whether to draft, how deep, and a budget for trying again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from graftline.runtimes.control.choose import IDLE, NAP, Offer, Terms
from graftline.runtimes.control.costs import Costs
from graftline.runtimes.drafter import Bid, PaidDrafter
from graftline.tree import Tree

GAIN, DOUBT = 0.03, 0.12
"""Tokens that a draft must bring besides its costs, and those it must bring besides while all that
is known of it is a belief."""
WEIGHT, HORIZON, BETWEEN = 4.0, 48.0, 12.0
"""Drafts that a belief is worth, over which means forget, and of earlier texts that count."""
AHEAD = 4
"""Rows over which the marginal cost of one more is averaged: measured costs come in steps."""
DEBT_STEPS = 32
"""Steps over which catching up with the sequence is written off."""
EXPLORE, RAREST = 0.01, 4
"""Share of the time without drafts that pays for tries, and by how much failures lower it at most.
"""


@dataclass
class Means:
    """What drafts of one class have been: sums over `drafts` of them, forgetting slowly."""

    drafts: float
    accepted: float
    rows: float
    milliseconds: float

    def record(self, accepted: float, rows: float, milliseconds: float) -> None:
        """One more draft of so many rows behind the root."""
        keep = 1.0 - 1.0 / HORIZON
        self.drafts = self.drafts * keep + 1.0
        self.accepted = self.accepted * keep + accepted
        self.rows = self.rows * keep + rows
        self.milliseconds = self.milliseconds * keep + milliseconds

    def scaled(self, share: float) -> Means:
        """As many drafts less."""
        return Means(
            self.drafts * share, self.accepted * share, self.rows * share, self.milliseconds * share
        )


def promised(tree: Tree) -> float:
    """Tokens that a draft is to bring by its own account, `Tree.probs`; 0 where it gives none."""
    if tree.probs is None:
        return 0.0
    parents, chances, reach = tree.parent_list, tree.probs.tolist(), [1.0]
    for node in range(1, len(parents)):
        reach.append(reach[parents[node]] * chances[node])
    return sum(reach) - 1.0


class Paid:
    """Whether to draft: by what drafts of the class that the drafter foresees have brought and cost
    so far. How deep: a ratio of means is at its maximum when one goes on exactly while the next
    row's chance is at least the ratio times the row's cost (Dinkelbach 1967); so a bid carries, for
    each depth, the least chance worth drafting and the least worth scoring. While nothing is
    drafted, a share of the time pays for a draft of one token now and then; every such try in a row
    that lost halves that share. The first steps of all are plain, to compare with, and the first
    draft is of one token.
    """

    def __init__(self, name: str, costs: Costs) -> None:
        self._name, self._costs = name, costs
        self._classes: dict[int, Means] = {}
        self._recent = Means(0.0, 0.0, 0.0, 0.0)
        self._open: dict[int, tuple[Means, float, float]] = {}
        """By sequence: of what class this step's draft is, its rows and milliseconds."""
        self.budget = 0.0
        """Milliseconds that may be spent on tries."""
        self.trying = False
        """Whether this step's draft is a try."""
        self._failures, self._idle = 0, 0

    def begin(self) -> None:
        """Another text begins."""
        self._recent = Means(0.0, 0.0, 0.0, 0.0)
        self._failures, self._idle = min(self._failures, 1), 0
        self._classes = {
            key: means.scaled(min(1.0, BETWEEN / means.drafts))
            for key, means in self._classes.items()
        }

    def offers(self, drafters: Sequence[tuple[int, PaidDrafter]], terms: Terms) -> list[Offer]:
        """A draft of each sequence, as such drafts have been."""
        self._idle += 1
        pace = self._costs.pace
        if not pace.settled(self._name) or min(d.rows for _, d in drafters) < 2 or terms.room < 2:
            return []
        if self._idle > IDLE and self._idle % NAP:
            return []
        slower = pace.slower(self._name, "paid", terms.batch)
        made: list[Offer] = []
        for sequence, drafter in drafters:
            known = self._means(drafter, terms)
            gain, rows = known.accepted / known.drafts, known.rows / known.drafts
            price = known.milliseconds / known.drafts + drafter.debt() / DEBT_STEPS
            hurdle = GAIN + DOUBT * min(WEIGHT / known.drafts, 1.0)
            size = max(1, min(round(rows), terms.room - 1))
            made.append(
                Offer(sequence, [gain], hurdle=hurdle, slower=slower, size=size, price=price)
            )
        return made

    def try_again(self, drafters: Sequence[tuple[int, PaidDrafter]], terms: Terms) -> bool:
        """Save for a try, of a step in which nothing is drafted; True when there is enough."""
        if not self._costs.pace.settled(self._name) or not drafters or terms.room < 2:
            return False
        plain = self._costs.of(terms.batch, False, terms.past, terms.batch)
        self.budget += EXPLORE / min(2**self._failures, RAREST) * plain
        if self._idle > IDLE and self._idle % NAP:
            return False
        more = self._costs.of(2 * terms.batch, False, terms.past, terms.batch) - plain
        price = more + sum(self._price(d, 1, terms) + d.debt() for _, d in drafters)
        self.trying = self.budget >= price
        self.budget -= price if self.trying else 0.0
        return self.trying

    def bid(self, drafter: PaidDrafter, terms: Terms, rate: float) -> Bid:
        """What one sequence may spend, where the step is expected to bring `rate` tokens a
        millisecond."""
        if self.trying or not self._costs.pace.tried(self._name):
            return Bid.free(2)
        recent, batch = self._recent, terms.batch
        if recent.drafts > 8:
            rate = recent.accepted / recent.milliseconds
        rate = max(rate, batch / self._costs.of(batch, False, terms.past, batch))
        rows = min(terms.room, drafter.rows)
        steps = [
            self._costs.of(batch * row, False, terms.past, batch) for row in range(1, rows + AHEAD)
        ]
        rises = (steps[row + AHEAD - 1] - steps[row - 1] for row in range(1, rows))
        keep = [0.0] + [rate * rise / AHEAD / batch for rise in rises]
        return Bid(rows, [k + rate * self._price(drafter, 1, terms) for k in keep], keep)

    def drafted(self, sequence: int, drafter: PaidDrafter, rows: int, terms: Terms) -> float:
        """A draft of `rows` rows behind the root was made; the milliseconds it took."""
        self._idle = 0
        price = self._price(drafter, drafter.reads, terms)
        self._open[sequence] = self._means(drafter, terms), rows, price
        return price

    def learn(self, sequence: int, accepted: int) -> None:
        """Of a draft so many tokens were accepted."""
        if sequence in self._open:
            means, rows, milliseconds = self._open.pop(sequence)
            means.record(accepted, rows, milliseconds)

    def took(self, tokens: int, expected: float, step: float, plain: float, bought: bool) -> None:
        """A step brought so many tokens, was to take `expected` milliseconds and took `step`, where
        a plain one takes `plain` a token."""
        if bought:
            self._recent.record(tokens, 0.0, expected)
        if self.trying:  # what is saved for tries pays for all of them
            self.budget += min(expected - step, 0.0)
            self._failures = self._failures + 1 if tokens * plain < expected else 0
        self.trying = False

    def _means(self, drafter: PaidDrafter, terms: Terms) -> Means:
        key = drafter.foresight()
        if key not in self._classes:
            self._classes[key] = self._believed(drafter, terms)
        return self._classes[key]

    def _believed(self, drafter: PaidDrafter, terms: Terms) -> Means:
        """A few drafts as those of the other classes were, or else of the best size under the
        drafter's own prior."""
        others = list(self._classes.values())
        drafts = sum(means.drafts for means in others)
        if drafts > 2 * WEIGHT * max(1, len(others)):
            total = Means(
                drafts,
                sum(means.accepted for means in others),
                sum(means.rows for means in others),
                sum(means.milliseconds for means in others),
            )
            return total.scaled(WEIGHT / drafts)
        best, expected, found = 0.0, 1.0, Means(1.0, 0.0, 1.0, self._price(drafter, 1, terms))
        for row, chance in enumerate(drafter.hope(drafter.foresight())[1:], 1):
            expected += chance
            price = self._price(drafter, row, terms)
            rows = self._costs.of(terms.batch * (row + 1), False, terms.past, terms.batch)
            if expected / (rows / terms.batch + price) > best:
                best = expected / (rows / terms.batch + price)
                found = Means(1.0, expected - 1.0, row, price)
        return found.scaled(WEIGHT)

    def _price(self, drafter: PaidDrafter, reads: float, terms: Terms) -> float:
        """Attention over what is committed costs a draft at most what it costs the target."""
        growth = self._costs.of(1, False, terms.past) - self._costs.of(1)
        return drafter.price(reads) + reads * max(growth, 0.0)
