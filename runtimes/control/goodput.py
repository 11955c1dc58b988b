"""Goodput: choose each step's number of rows by expected tokens per millisecond, none included."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from graftline.runtimes.control.costs import NEAR, Costs
from graftline.runtimes.control.evidence import Evidence, Walk
from graftline.runtimes.control.host_time import HostTime
from graftline.runtimes.control.offers import Offer, best_rows, least_slopes
from graftline.runtimes.control.step_pace import StepPace
from graftline.runtimes.control.text_fit import TextFit
from graftline.runtimes.drafter import Bid, Drafter
from graftline.tree import Tree

GAIN = 1.15
"""Least expected gain for which one speculates: what looks best of many sizes looks better than it
is."""
CALM, NAP = 12, 4
"""Steps in a row without a draft after which proposals that cost the host time are asked for only
in every so many."""
LONG = 256
"""Steps in a row without a draft, of any text, after which all proposals are asked for seldom."""
MODEST = 0.01
"""Share of a plain step that proposals may cost without that."""
SPAN = 64
"""Committed positions over which a step is taken to cost the same."""
WARY = 6.0
"""Trust in what is believed (`TextFit`) of whole proposals, which are dear: a text never makes them
look better, one that came true is counted once, and few that did not are enough."""


class Goodput:
    """Maximises expected tokens over the cost of the step.

    Exploring costs nothing: every proposal, scored or not, is followed along the tokens that come
    anyway, and whether each of its rows would have been accepted is counted per class of proposal
    (`Drafter.signal`), and how well all of them do in the text at hand (`TextFit`). So a drafter
    that loses is left at once, and taken up again at once when its unscored proposals come true;
    where making them costs the host time and none has been scored for a while, only those of every
    NAP-th step are. A step of B sequences with q rows each is taken to cost what one of B * q rows
    does, and one that drafts also what the host and the engine were seen to need more.
    `whole`: a proposal is scored as it is or not at all. `lossy`: the rule accepts more than would
    have come anyway, so that of a scored proposal the rows behind the scored ones say nothing.
    Neither are those rows followed that could not pay whatever they did.
    """

    def __init__(
        self,
        costs: Costs,
        prior: Callable[[int], Sequence[float]],
        branching: bool,
        gain: float = GAIN,
        horizon: float = 48.0,
        weight: float = 20.0,
        open_walks: int = 4,
        whole: bool = False,
        lossy: bool = False,
    ) -> None:
        self._whole, self._lossy = whole, lossy
        self._costs, self._prior, self._branching = costs, prior, branching
        self._gain, self._horizon, self._weight = gain, horizon, weight
        self._open = 1 if whole else open_walks
        self._evidence: dict[int, Evidence] = {}
        self._walks: list[list[Walk]] = []
        self._steps: list[float] = []
        self._slopes: list[float] = []
        self._span = NEAR // SPAN
        """Costs of steps by rows, for committed positions from SPAN times this on, and the least
        that further rows cost each."""
        self._next = (0.0, 1e-9)
        self._host, self._pace = HostTime(), StepPace()
        self._fits: list[TextFit] = []
        self._calm, self._idle, self._proposing = 0, 0, 0.0
        self.rows = 1
        """Of the step that was chosen last."""

    @property
    def asking(self) -> bool:
        """False in three of four steps while nothing is drafted, if proposals are dear; in seven of
        eight where nothing was drafted for long, in this text and in those before it."""
        if self._idle >= LONG and self._calm >= NAP:
            return self._calm % (2 * NAP) == 0
        dear = self._proposing > MODEST * self._costs.of(1)
        return not dear or self._calm < CALM or self._calm % NAP == 0

    @property
    def expected(self) -> tuple[float, float]:
        """Tokens and milliseconds that the step chosen last is expected to bring and to take."""
        return self._next

    @property
    def rate(self) -> float:
        """Tokens per millisecond expected of the step that was chosen last."""
        return self._next[0] / self._next[1]

    def expect(self, tokens: float, milliseconds: float) -> None:
        """Tokens and milliseconds that the step chosen last is expected to bring and to take."""
        self._next = tokens, milliseconds

    def begin(self, batch: int) -> None:
        for evidence in self._evidence.values():
            evidence.rest()
        self._walks = [[] for _ in range(batch)]
        self._seats(batch)
        self._calm = 0
        self._fits = [self._fit() for _ in range(batch)]
        self._next = (0.0, 1e-9)

    def join(self) -> None:
        self._walks.append([])
        self._fits.append(self._fit())
        self._seats(len(self._walks))

    def leave(self, sequence: int) -> None:
        del self._walks[sequence], self._fits[sequence]
        self._seats(len(self._walks))

    def _seats(self, batch: int) -> None:
        """Steps of another number of sequences have other costs."""
        self._batch, self._steps, self._slopes = batch, [], []

    def choose(self, proposals: Sequence[tuple[int, Tree]], room: int, past: int = NEAR) -> int:
        """Proposals come in the order in which the sequences joined."""
        if past // SPAN != self._span:
            self._span, self._steps, self._slopes = past // SPAN, [], []
        most = max(len(tree) for _, tree in proposals)
        self.rows = 1
        self._calm += 1
        self._idle += 1
        plain = self._cost(1)
        self._next = float(len(proposals)), plain
        if most == 1:
            return 1
        offers = [
            Offer(signal, tree, self._of(signal), self._fits[sequence], self._walks[sequence])
            for sequence, (signal, tree) in enumerate(proposals)
            if len(tree) > 1
        ]
        extra, dearer = self._host.surcharge(plain), self._pace.dearer
        last = min(most, room)
        self._cost(last)
        if len(self._slopes) != len(self._steps) - 1:
            self._slopes = least_slopes(self._steps)
        best, far = best_rows(
            offers, len(proposals), self._steps[:last], self._slopes, self._gain,
            dearer=dearer, extra=extra, whole=most if self._whole else 0,
        )  # fmt: skip
        self.rows = best
        if best > 1:
            self._calm = self._idle = 0
            told = sum(one.fit.told * one.hoped(best) for one in offers)
            self._next = len(proposals) + told, self._steps[best - 1] * dearer + extra
        followed = best if self._lossy and best > 1 else far
        for one in offers:
            if len(one.walks) < self._open:
                one.walks.append(Walk(one.signal, one.tree, one.hoped(followed), followed))
        return best

    def bid(self, drafters: Sequence[Drafter], room: int) -> Bid | None:
        """None: what this controller knows of costs nothing to make."""
        return None

    def bought(self, proposals: Sequence[tuple[int, Tree]], drafters: Sequence[Drafter]) -> int:
        return max(len(tree) for _, tree in proposals)

    def learn(self, sequence: int, fresh: Sequence[int]) -> None:
        walks = self._walks[sequence]
        if walks:
            going: list[Walk] = []
            for walk in walks:
                if self._of(walk.signal).follow(walk, fresh):
                    going.append(walk)
                else:
                    self._fits[sequence].record(walk.came, walk.hoped)
            self._walks[sequence] = going

    def took(self, step: float, host: float, proposing: float | None = None) -> None:
        self._host.record(self.rows > 1, host)
        self._pace.record(self.rows > 1, self._cost(self.rows), step - host)
        if proposing is not None:  # one interruption must not look like a slow drafter
            known = self._proposing
            self._proposing += 0.1 * (min(proposing, 2.0 * known + 0.02) - known)

    def _fit(self) -> TextFit:
        return TextFit(WARY, most=1.0) if self._whole else TextFit()

    def _of(self, signal: int) -> Evidence:
        if signal not in self._evidence:
            prior = self._prior(signal)
            self._evidence[signal] = Evidence(prior, self._horizon, self._weight)
        return self._evidence[signal]

    def _cost(self, rows: int) -> float:
        """Milliseconds of a step of the whole batch with `rows` rows each."""
        while len(self._steps) < rows:
            q = len(self._steps) + 1
            branching = self._branching and q > 1
            self._steps.append(self._costs.of(self._batch * q, branching, self._span * SPAN))
        return self._steps[rows - 1]
