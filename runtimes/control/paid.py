"""Drafts that cost time: whether to draft, how deep, and when to try again."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate, pairwise
from typing import NamedTuple

from graftline.runtimes.control.choose import Offer, Terms
from graftline.runtimes.control.costs import Costs
from graftline.runtimes.drafter import Bid, PaidDrafter, is_resumed

WEIGHT, HORIZON = 4.0, 32.0
"""Drafts that the first belief is worth, and over which means forget."""
DEBT_STEPS = 32
"""Steps over which catching up with the sequence is written off."""
DRAFTING = "drafting"
"""What drafts alone are to the pace of steps: a kind of their own."""
EXPLORE = 0.01
"""Tokens that a draft may fall short of its costs for every step since the last one."""


class Means(NamedTuple):
    """Of drafts: how many count, tokens accepted, rows behind the root, milliseconds."""

    drafts: float
    tokens: float
    rows: float
    milliseconds: float

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
    drafted, drafts are taken for better by and by: so trying again costs a small share of the time,
    whatever a try costs. The first steps of all are plain, to compare with.
    """

    def __init__(self, name: str, costs: Costs) -> None:
        self._name, self._costs = name, costs
        self._classes: dict[tuple[int, int], Means] = {}
        """By the drafter's class and the sequences of a step, in powers of two: calls that several
        sequences share cost each of them less."""
        self._open: dict[int, tuple[tuple[int, int], float, float]] = {}
        """By sequence: of what class this step's draft is, its rows and milliseconds."""
        self._idle = 0
        """Steps since the last draft."""

    def offers(self, drafters: Sequence[tuple[int, PaidDrafter]], terms: Terms) -> list[Offer]:
        """A draft of each sequence, as such drafts have been."""
        self._open.clear()
        made, pace = list[Offer](), self._costs.pace
        if not pace.settled(self._name) or terms.room < 2:
            return made
        slower = pace.slower(self._name, "paid", terms.batch)
        for sequence, drafter in drafters:
            if drafter.rows > 1:
                _, tokens, rows, milliseconds = self._known(drafter, terms)
                price = milliseconds + drafter.debt() / DEBT_STEPS
                size = max(1, min(round(rows), terms.room - 1))
                gains = [tokens + EXPLORE * self._idle]
                made.append(Offer(sequence, gains, 1 << 30, 0.0, slower, size, price))
        return made

    def bid(self, drafter: PaidDrafter, terms: Terms, rate: float) -> Bid:
        """What one sequence may spend, where the step is expected to bring `rate` tokens a
        millisecond."""
        sizes = range(1, min(terms.room, drafter.rows) + 1)
        costs = [self._cost(row, terms) - self._saved(drafter, row, terms) for row in sizes]
        slower = self._costs.pace.slower(self._name, "paid", terms.batch)
        rate = max(rate * slower, terms.batch / self._cost(1, terms))
        rises = (after - before for before, after in pairwise(costs))
        keep = [0.0, *(rate * rise / terms.batch for rise in rises)]
        call = rate * self._price(drafter, 1, terms)
        return Bid(len(costs), [least + call for least in keep], keep)

    def drafted(self, sequence: int, drafter: PaidDrafter, rows: int, terms: Terms) -> float:
        """A draft of `rows` rows behind the root was made; the milliseconds it took."""
        price = self._price(drafter, drafter.reads, terms)
        price = max(price - self._saved(drafter, rows + 1, terms) / terms.batch, 0.0)
        self._known(drafter, terms)
        self._open[sequence] = self._class(drafter, terms), rows, price
        return price

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
        return self._classes[self._open[sequence][0]].tokens if sequence in self._open else 0.0

    def learn(self, sequence: int, accepted: int) -> None:
        """Of a draft so many tokens were accepted."""
        if sequence in self._open:
            key, rows, milliseconds = self._open.pop(sequence)
            self._classes[key] = self._classes[key].after(accepted, rows, milliseconds)

    def took(self, bought: bool) -> None:
        """A step has ended, with drafts or without."""
        self._idle = 0 if bought else self._idle + 1

    def _known(self, drafter: PaidDrafter, terms: Terms) -> Means:
        """What drafts of the class to come have been: at first, of the best size by the drafter's
        own prior."""
        key = self._class(drafter, terms)
        if key not in self._classes:
            sums = enumerate(accumulate(drafter.hope(key[0])[1:]), 1)
            drafts = [Means(WEIGHT, n, q, self._made(drafter, q, terms)) for q, n in sums]

            def rate(draft: Means) -> float:
                step = self._cost(int(draft.rows) + 1, terms) / terms.batch
                return (1.0 + draft.tokens) / (step + draft.milliseconds)

            self._classes[key] = max(drafts, key=rate)
        return self._classes[key]

    @staticmethod
    def _class(drafter: PaidDrafter, terms: Terms) -> tuple[int, int]:
        return drafter.foresight(), terms.batch.bit_length()

    def _made(self, drafter: PaidDrafter, rows: int, terms: Terms) -> float:
        """What drafts of so many rows are believed to take where all sequences draft, over what
        they save their step."""
        reads = drafter.reads_for(rows) if is_resumed(drafter) else rows
        reads *= drafter.share(terms.batch) if terms.batch > 1 else 1.0
        saved = self._saved(drafter, rows + 1, terms) / terms.batch
        return max(self._price(drafter, reads, terms) - saved, 0.0)

    def _saved(self, drafter: PaidDrafter, rows: int, terms: Terms) -> float:
        """Milliseconds that a step of so many rows of every sequence takes less, because drafts
        have computed a part of it."""
        if not is_resumed(drafter):
            return 0.0
        left = drafter.rest_cost(terms.batch * rows, terms.past, terms.batch)
        return self._cost(rows, terms) - left

    def _price(self, drafter: PaidDrafter, reads: float, terms: Terms) -> float:
        """Milliseconds of so many calls, as drafts have taken lately."""
        slower = self._costs.pace.slower(self._name, DRAFTING, terms.batch)
        return self._calls(drafter, reads, terms) * slower

    def _calls(self, drafter: PaidDrafter, reads: float, terms: Terms) -> float:
        """Attention over what is committed costs a draft at most what it costs the target."""
        growth = self._costs.of(1, False, terms.past) - self._costs.of(1)
        return drafter.price(reads) + reads * max(growth, 0.0)

    def _cost(self, rows: int, terms: Terms) -> float:
        """Milliseconds of a step with so many rows of every sequence."""
        return self._costs.of(terms.batch * rows, False, terms.past, terms.batch)
