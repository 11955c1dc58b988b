"""Goodput with drafts that cost time: whether to draft, how deep, and a purse for trying again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from graftline.runtimes.control.costs import NEAR, Costs
from graftline.runtimes.control.goodput import CALM, NAP, Goodput
from graftline.runtimes.control.host_time import HostTime
from graftline.runtimes.control.purse import Purse
from graftline.runtimes.control.step_pace import StepPace
from graftline.runtimes.control.text_fit import TextFit
from graftline.runtimes.drafter import Bid, Drafter, PaidDrafter, is_paid
from graftline.tree import Tree

AHEAD = 4
"""Rows over which the marginal cost of one more is averaged: measured costs come in steps."""
TIMID = 4
"""By how much tries that lost make the next ones rarer, at most."""
PROMISED = 6.0
"""Tokens that drafts must have promised before their record counts as much as their word."""
DOUBT = 0.12
"""What drafts must gain besides while all that is known of them is a belief: what looks best of
many depths looks better than it is."""
DEBT_STEPS = 32
"""Steps over which catching up with the sequence is written off."""


@dataclass
class Trade:
    """What drafting brought in past steps, and what those cost, forgetting slowly."""

    steps: float
    tokens: float
    cost: float
    """In plain steps where classes of drafts are compared: they must stand when texts get longer.
    """
    keep: float = field(default=1.0 - 1.0 / 48.0, repr=False)

    def record(self, tokens: int, cost: float) -> None:
        """One more step."""
        self.steps = self.steps * self.keep + 1.0
        self.tokens = self.tokens * self.keep + tokens
        self.cost = self.cost * self.keep + cost


def promised(tree: Tree) -> float | None:
    """Tokens that a draft is to bring by its own account, `Tree.probs`; None: it gives none."""
    if tree.probs is None:
        return None if len(tree) > 1 else 0.0
    parents = tree.parent_list
    chances: list[float] = tree.probs.tolist()
    reach = [1.0]
    for node in range(1, len(parents)):
        reach.append(reach[parents[node]] * chances[node])
    return sum(reach) - 1.0


class PaidGoodput:
    """Maximises tokens per millisecond where drafting costs milliseconds too.

    Whether to draft: the mean tokens over the mean cost of past drafts of the class that the
    drafter foresees, against the best free proposal and against none. How deep: a ratio of means is
    at its maximum when one goes on exactly while the next row's chance is at least the ratio times
    the row's cost (Dinkelbach 1967); so a bid carries, for each depth, the least chance worth
    drafting and the least worth scoring. While drafting is off, `explore` of the time fills a purse
    that pays for a draft of one token now and then, so that a draft that has become good is taken
    up again; every such try in a row that lost halves that share, down to a quarter. While nothing
    is bought for long, only every NAP-th step is asked what a draft would be worth. What a drafted
    step takes outside the engines is seen, too, and counted, and so is an engine that is slower
    than measured beside another: the very first steps of all are plain, to compare with, and the
    first draft is of one token.
    """

    def __init__(
        self,
        costs: Costs,
        drafter: PaidDrafter,
        branching: bool,
        gain: float = 1.03,
        explore: float = 0.01,
        weight: float = 4.0,
    ) -> None:
        self._free = Goodput(costs, drafter.prior, branching, gain)
        self._costs, self._branching = costs, branching
        self._gain, self._explore, self._weight = gain, explore, weight
        self._trades: dict[tuple[int, int], Trade] = {}
        self._purse, self._committed = Purse(), NEAR
        self._vain, self._calm = 0, 0
        """Tries in a row that lost, and steps in a row for which nothing was bought."""
        self._trying = False
        self._batch = 1
        self._overall = Trade(0.0, 0.0, 0.0)
        self._open: list[Trade | None] = []
        self._spent, self._due, self._live = 0.0, 0.0, 1
        """Milliseconds of the step under way, those of catching up before it, and the sequences it
        is for."""
        self._bought: list[PaidDrafter] = []
        """Who drafted for it."""
        self._host, self._pace, self._fit = HostTime(), StepPace(), TextFit(PROMISED, most=3.0)
        self._hoped: list[float | None] = []
        """What the draft of each sequence promised; `_fit` knows what promises are worth."""

    @property
    def expected(self) -> tuple[float, float] | None:
        """Tokens and milliseconds that the step chosen last is expected to bring and to take."""
        return self._free.expected

    @property
    def asking(self) -> bool:
        """Whether the proposals that cost nothing are wanted."""
        return self._free.asking

    def begin(self, batch: int) -> None:
        self._free.begin(batch)
        self._batch = batch
        self._vain, self._calm = min(self._vain, 1), 0
        self._overall = Trade(0.0, 0.0, 0.0)
        self._open = [None] * batch
        for trade in self._trades.values():
            share = min(1.0, 12.0 / trade.steps)
            trade.steps, trade.tokens = trade.steps * share, trade.tokens * share
            trade.cost *= share

    def join(self) -> None:
        self._free.join()
        self._open.append(None)
        self._batch += 1

    def leave(self, sequence: int) -> None:
        self._free.leave(sequence)
        del self._open[sequence]
        self._batch -= 1

    def choose(self, proposals: Sequence[tuple[int, Tree]], room: int, past: int = NEAR) -> int:
        """Rows of the free proposals, for the case that nothing is bought."""
        self._committed, self._bought = past, []
        rows = self._free.choose(proposals, room, past)
        self._spent = self._step(rows)
        return rows

    def bid(self, drafters: Sequence[Drafter], room: int) -> Bid | None:
        """What drafting may cost this step, given every sequence's drafter; None: nothing."""
        live = [(b, d) for b, d in enumerate(drafters) if is_paid(d)]
        self._open = [None] * self._batch
        self._trying = False
        self._live = max(1, len(live))
        self._calm += 1
        saved = self._explore / min(2**self._vain, TIMID) * self._step(1)
        if not self._pace.settled:
            return None
        if self._calm > CALM and self._calm % NAP:
            self._purse.save(saved)
            return None
        rows = min([room, *(d.rows for _, d in live)]) if live else 1
        if rows < 2:
            return None
        trades = [self._trade(d) for _, d in live]
        expected = sum(t.tokens / t.steps for t in trades)
        self._due = debt = sum(d.debt() for _, d in live)
        cost = self._step(1) * sum(t.cost / t.steps for t in trades) + debt / DEBT_STEPS
        cost *= self._pace.dearer
        worth = expected / cost
        plain = len(live) / self._step(1)
        gain = self._gain + DOUBT * self._weight / min(t.steps for t in trades)
        if worth > max(self._free.rate, plain * gain):
            for (b, _), trade in zip(live, trades, strict=True):
                self._open[b] = trade
            self._free.expect(expected, cost)
            self._calm = 0
            if not self._pace.tried:  # so far all prices are those of engines that run alone
                return Bid.free(2)
            return self._priced(rows, live[0][1], max(plain, self._mean() or worth))
        self._purse.save(saved)
        price = sum(self._price(d, 1) for _, d in live) + debt + self._step(2) - self._step(1)
        if not self._purse.pays(price):
            return None
        self._trying = True
        for (b, _), trade in zip(live, trades, strict=True):
            self._open[b] = trade
        return Bid.free(2)

    def bought(self, proposals: Sequence[tuple[int, Tree]], drafters: Sequence[Drafter]) -> int:
        """What came of a bid: all of its rows are scored, because drawn drafts may not be cut. By
        now it is known what the drafts have cost and what they promise."""
        rows = max(len(tree) for _, tree in proposals)
        live = [d for d in drafters if is_paid(d)]
        price = sum(self._price(d, d.reads) for d in live)
        self._spent = self._step(rows) + price + self._host.surcharge(self._step(1))
        self._bought = live
        self._hoped = [promised(tree) for _, tree in proposals]
        tokens = self._free.expected[0]
        if None not in self._hoped:
            tokens = len(live) + self._fit.factor * sum(h for h in self._hoped if h)
        self._free.expect(tokens, (self._spent + self._due) * self._pace.dearer)
        return rows

    def learn(self, sequence: int, fresh: Sequence[int]) -> None:
        self._free.learn(sequence, fresh)
        if not fresh:
            return
        share = self._spent / self._live
        self._overall.record(len(fresh), share)
        trade = self._open[sequence]
        if self._bought and (hoped := self._hoped[sequence]):
            self._fit.record(len(fresh) - 1, hoped)
        if trade is not None:
            cost = share / self._step(1)
            trade.record(len(fresh), cost)
            if self._trying:
                self._vain = self._vain + 1 if len(fresh) < cost else 0

    def took(self, step: float, host: float, proposing: float | None = None) -> None:
        if self._bought:
            host -= sum(d.reading for d in self._bought)
            self._host.record(True, host)
            self._pace.record(True, self._spent + self._due, step)
            if self._trying:  # what is saved for tries pays for all of them
                self._purse.save(min(self._spent + self._due - step, 0.0))
            return
        self._free.took(step, host, proposing)
        if self._free.rows == 1:
            self._host.record(False, host)
            self._pace.record(False, self._spent, step - host)

    def _mean(self) -> float:
        """Tokens per millisecond of the whole batch in the last steps."""
        done = self._overall
        return done.tokens / done.cost if done.steps > 8 else 0.0

    def _trade(self, drafter: PaidDrafter) -> Trade:
        key = (self._batch, drafter.foresight())
        if key not in self._trades:
            self._trades[key] = self._believed(drafter)
        return self._trades[key]

    def _believed(self, drafter: PaidDrafter) -> Trade:
        """A few steps as those of the other classes were, or else of the best size under the
        drafter's own prior."""
        others = [t for (batch, _), t in self._trades.items() if batch == self._batch]
        steps = sum(t.steps for t in others)
        if steps > 2 * self._weight * max(1, len(others)):
            share = self._weight / steps
            tokens = sum(t.tokens for t in others) * share
            return Trade(self._weight, tokens, sum(t.cost for t in others) * share)
        reach = drafter.hope(drafter.foresight())
        best, tokens, spent = 0.0, 1.0, self._step(1) / self._batch
        expected = 1.0
        for row in range(1, len(reach)):
            expected += reach[row]
            cost = self._step(row + 1) / self._batch + self._price(drafter, row)
            if expected / cost > best:
                best, tokens, spent = expected / cost, expected, cost
        return Trade(self._weight, self._weight * tokens, self._weight * spent / self._step(1))

    def _priced(self, rows: int, drafter: PaidDrafter, rate: float) -> Bid:
        """The least chances, by depth, at `rate` tokens per millisecond of the batch."""
        keep = [0.0] + [
            rate * (self._step(depth + AHEAD) - self._step(depth)) / AHEAD / self._batch
            for depth in range(1, rows)
        ]
        return Bid(rows, [k + rate * self._price(drafter, 1) for k in keep], keep)

    def _price(self, drafter: PaidDrafter, reads: float) -> float:
        """Attention over what is committed costs a draft at most what it costs the target."""
        growth = self._costs.of(1, False, self._committed) - self._costs.of(1)
        return drafter.price(reads) + reads * max(growth, 0.0)

    def _step(self, rows: int) -> float:
        branching = self._branching and rows > 1
        return self._costs.of(self._batch * rows, branching, self._committed)
