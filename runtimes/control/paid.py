"""Drafts that cost time: whether to draft, how deep, and when to try again."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

from graftline.runtimes.control.choose import Offer, Terms
from graftline.runtimes.control.costs import Costs
from graftline.runtimes.control.pace import DRAFTING
from graftline.runtimes.drafter import Bid, PaidDrafter, is_resumed

WEIGHT, HORIZON = 4.0, 32.0
"""Drafts that the first belief is worth, and over which means forget."""
DEBT_STEPS = 32
"""Steps over which catching up with the sequence is written off."""
EXPLORE = 0.01
"""Tokens that a draft may fall short of its costs for every step since the last one, less what
catching up with its sequence takes: it may be the only draft there."""
RARER = 8
"""How many times rarer that makes such drafts at most, as a sequence owes more with every step."""


class Means(NamedTuple):
    """Of drafts: how many count, tokens accepted, rows behind the root, and the milliseconds that
    each would have taken alone."""

    drafts: float
    tokens: float
    rows: float
    alone: float

    def after(self, *last: float) -> Means:
        """With one more, those before it slowly forgotten."""
        drafts = min(self.drafts + 1.0, HORIZON)
        pairs = zip(self[1:], last, strict=True)
        return Means(drafts, *(mean + (new - mean) / drafts for mean, new in pairs))


class Paid:
    """Whether to draft: by what drafts of the class that the drafter foresees have brought and cost
    so far. How deep: a ratio of means is at its maximum when one goes on exactly while the next
    row's chance is at least the ratio times the row's cost (Dinkelbach 1967); so a bid carries, for
    each depth, the least chance worth drafting and the least worth scoring. While nothing is
    drafted, drafts are taken for better by and by: so trying again costs a small share of the time.
    """

    def __init__(self, name: str, costs: Costs) -> None:
        self._name, self._costs, self._idle = name, costs, 0
        self._known: dict[tuple[int, int], Means] = {}
        """By the drafter's class and the sequences of a step, in powers of two, as the depth that
        is worth its cost depends on them."""
        self._open: dict[int, tuple[tuple[int, int], float, float]] = {}
        """By sequence: of what class this step's draft is, its rows and milliseconds alone."""

    def offers(self, drafters: Sequence[tuple[int, PaidDrafter]], terms: Terms) -> list[Offer]:
        """A draft of each sequence, as such drafts have been."""
        self._open.clear()
        if not self._costs.pace.settled(self._name) or terms.room < 2:
            return []
        return [self._offer(s, one, terms, len(drafters)) for s, one in drafters if one.rows > 1]

    def _offer(self, sequence: int, drafter: PaidDrafter, terms: Terms, together: int) -> Offer:
        """Of what several sequences' calls take, a part is the same for any number of them."""
        _, tokens, rows, alone = self._known[self._class(drafter, terms)]
        size, each = max(1, min(round(rows), terms.room - 1)), 1.0
        if together > 1:
            each = (drafter.share(together) * together - 1.0) / (together - 1)
        price = max(alone * each - self._saved(drafter, size + 1, terms), 0.0)
        debt = drafter.debt()
        price += debt / DEBT_STEPS
        slower = self._costs.pace.slower(self._name, "paid", terms.batch)
        spare = EXPLORE * self._idle
        owed = debt * (1.0 - 1.0 / DEBT_STEPS) / self._cost(1, terms)
        gains = [tokens + max(spare - owed, spare / RARER)]
        shared = alone * (1.0 - each)
        return Offer(sequence, gains, 1 << 30, slower, size, price, shared, self._name)

    def bid(self, drafter: PaidDrafter, terms: Terms, rate: float) -> Bid:
        """What one sequence may spend, where the step is expected to bring `rate` tokens a
        millisecond."""
        rows = range(1, min(terms.room, drafter.rows) + 1)
        costs = [self._cost(n, terms) - self._saved(drafter, n, terms) for n in rows]
        slower = self._costs.pace.slower(self._name, "paid", terms.batch)
        rate = max(rate * slower, 1.0 / self._cost(1, terms))
        keep = [0.0, *(rate * (after - before) for before, after in pairwise(costs))]
        call = rate * self._price(drafter, 1, terms)
        return Bid(len(costs), [least + call for least in keep], keep)

    def drafted(
        self, sequence: int, drafter: PaidDrafter, rows: int, terms: Terms, together: int = 1
    ) -> float:
        """A draft of `rows` rows behind the root was made, `together` with others; the milliseconds
        it took, less what it saves its step."""
        price = self._price(drafter, drafter.reads, terms)
        alone = price / (drafter.share(together) if together > 1 else 1.0)
        self._open[sequence] = self._class(drafter, terms), rows, alone
        return max(price - self._saved(drafter, rows + 1, terms), 0.0)

    def compare(
        self, drafters: Sequence[PaidDrafter], debts: float, milliseconds: float, terms: Terms
    ) -> None:
        """These drafts, and catching up with their sequences first for what is believed to take
        `debts`, took so many milliseconds in all: whatever they take beside their calls is charged,
        as calls are."""
        believed = debts + sum([self._calls(one, one.reads, terms) for one in drafters])
        if believed > 0:
            ratio = milliseconds / believed
            self._costs.pace.record(self._name, DRAFTING, terms.batch, ratio)

    def expected(self, sequence: int) -> float:
        """Tokens that this step's draft is expected to bring; 0 where there is none."""
        return self._known[self._open[sequence][0]].tokens if sequence in self._open else 0.0

    def learn(self, sequence: int, accepted: int) -> None:
        """Of a draft so many tokens were accepted."""
        if sequence in self._open:
            key, *draft = self._open.pop(sequence)
            self._known[key] = self._known[key].after(accepted, *draft)

    def took(self, bought: bool) -> None:
        """A step has ended, with drafts or without."""
        self._idle = 0 if bought else self._idle + 1

    def _class(self, drafter: PaidDrafter, terms: Terms) -> tuple[int, int]:
        """The class of a draft to come. One that is new is believed to go as deep as the drafter's
        own prior takes a row to be accepted as likely as not."""
        key = drafter.foresight(), terms.batch.bit_length()
        if key not in self._known:
            first, *deeper = drafter.hope(key[0])[1:]
            sure = [first, *(chance for chance in deeper if chance >= 0.5)]
            reads = drafter.reads_for(len(sure)) if is_resumed(drafter) else len(sure)
            alone = self._price(drafter, reads, terms)
            self._known[key] = Means(WEIGHT, sum(sure), len(sure), alone)
        return key

    def _saved(self, drafter: PaidDrafter, rows: int, terms: Terms) -> float:
        """Milliseconds of each sequence that a step of so many rows of all takes less, because
        drafts have computed a part of it."""
        if not is_resumed(drafter):
            return 0.0
        left = drafter.rest_cost(terms.batch * rows, terms.past, terms.batch)
        return self._cost(rows, terms) - left / terms.batch

    def _price(self, drafter: PaidDrafter, reads: float, terms: Terms) -> float:
        """Milliseconds of so many calls, as drafts have taken lately."""
        slower = self._costs.pace.slower(self._name, DRAFTING, terms.batch)
        return self._calls(drafter, reads, terms) * slower

    def _calls(self, drafter: PaidDrafter, reads: float, terms: Terms) -> float:
        """Attention over what is committed costs a draft at most what it costs the target."""
        growth = self._costs.of(1, False, terms.past) - self._costs.of(1)
        return drafter.price(reads) + reads * max(growth, 0.0)

    def _cost(self, rows: int, terms: Terms) -> float:
        """Milliseconds of each sequence in a step with so many rows of all."""
        return self._costs.of(terms.batch * rows, False, terms.past, terms.batch) / terms.batch
