"""Goodput: choose each step's number of rows by expected tokens per millisecond, none included."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from graftline.runtimes.control.costs import NEAR
from graftline.runtimes.control.costs import Costs as Costs
from graftline.runtimes.control.evidence import Evidence as Evidence
from graftline.runtimes.control.evidence import Walk as Walk
from graftline.runtimes.control.host_time import HostTime
from graftline.runtimes.control.step_pace import StepPace
from graftline.runtimes.control.text_fit import TextFit
from graftline.runtimes.drafter import Bid, Drafter, is_paid
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


class Pacer(Protocol):
    """Chooses how many rows a step scores, for all sequences of a batch alike.

    First `choose` among the proposals that cost nothing to make; then a `bid` may replace them by
    drafts that a model makes, whose rows `bought` counts.
    """

    @property
    def expected(self) -> tuple[float, float] | None:
        """Tokens and milliseconds that the step chosen last is expected to bring and to take, for
        the whole batch; None: nothing is expected."""
        ...

    @property
    def asking(self) -> bool:
        """Whether the coming step wants proposals; without, all sequences propose their root."""
        ...

    def begin(self, batch: int) -> None:
        """A new request of `batch` sequences starts."""
        ...

    def admit(self, sequence: int) -> None:
        """Another sequence takes that place of the batch: open proposals for it are void."""
        ...

    def choose(self, proposals: Sequence[tuple[int, Tree]], room: int, past: int = NEAR) -> int:
        """Rows of this step, 1 to `room`, given every live sequence's signal and proposal, and the
        committed positions of the longest."""
        ...

    def bid(self, drafters: Sequence[Drafter | None], room: int) -> Bid | None:
        """What to spend on drafts of at most `room` rows; a finished sequence's drafter is None.
        None: nothing, the free proposals are scored."""
        ...

    def bought(
        self, proposals: Sequence[tuple[int, Tree]], drafters: Sequence[Drafter | None]
    ) -> int:
        """Rows of a step whose proposals were paid for."""
        ...

    def learn(self, sequence: int, fresh: Sequence[int]) -> None:
        """The live sequence at that place of the batch emitted `fresh`."""
        ...

    def took(self, step: float, host: float, proposing: float | None = None) -> None:
        """The step has ended: milliseconds it took, those that the host worked on it outside the
        target's engine, and those of them that making proposals took, if any were asked for."""
        ...


class Fixed:
    """Always as many rows as proposed, up to `rows`: what is done when costs are unknown."""

    def __init__(self, rows: int = 8) -> None:
        self.rows = rows

    @property
    def expected(self) -> tuple[float, float] | None:
        return None

    @property
    def asking(self) -> bool:
        return True

    def begin(self, batch: int) -> None:
        pass

    def admit(self, sequence: int) -> None:
        pass

    def choose(self, proposals: Sequence[tuple[int, Tree]], room: int, past: int = NEAR) -> int:
        return max(1, min(room, self.rows, max((len(t) for _, t in proposals), default=1)))

    def bid(self, drafters: Sequence[Drafter | None], room: int) -> Bid | None:
        rows = min(room, self.rows)
        paid = rows > 1 and any(is_paid(d) for d in drafters)
        return Bid.free(rows) if paid else None

    def bought(
        self, proposals: Sequence[tuple[int, Tree]], drafters: Sequence[Drafter | None]
    ) -> int:
        return max(len(tree) for _, tree in proposals)

    def learn(self, sequence: int, fresh: Sequence[int]) -> None:
        pass

    def took(self, step: float, host: float, proposing: float | None = None) -> None:
        pass


class Goodput:
    """Maximises expected tokens over the cost of the step.

    Exploring costs nothing: every proposal, scored or not, is followed along the tokens that come
    anyway, and whether each of its rows would have been accepted is counted per class of proposal
    (`Drafter.signal`), and how well all of them do in the text at hand (`TextFit`). So a drafter
    that loses is left at once, and taken up again at once when its unscored proposals come true;
    where making them costs the host time and none has been scored for a while, only those of every
    NAP-th step are. A step of B sequences with q rows each is taken to cost what one of B * q rows
    does, and one that drafts also what the host and the engine were seen to need more.
    `whole`: a proposal is scored as it is or not at all.
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
    ) -> None:
        self._whole = whole
        self._costs, self._prior, self._branching = costs, prior, branching
        self._gain, self._horizon, self._weight = gain, horizon, weight
        self._open = open_walks
        self._evidence: dict[int, Evidence] = {}
        self._walks: list[list[Walk]] = []
        self._steps: list[float] = []
        self._span = NEAR // SPAN
        """Costs of steps by rows, for committed positions from SPAN times this on."""
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
        self._steps = []
        self._batch = batch
        self._calm = 0
        self._fits = [TextFit() for _ in range(batch)]
        self._next = (0.0, 1e-9)

    def admit(self, sequence: int) -> None:
        self._walks[sequence] = []
        self._fits[sequence] = TextFit()

    def choose(self, proposals: Sequence[tuple[int, Tree]], room: int, past: int = NEAR) -> int:
        """Proposals come in the order of the batch; a finished sequence's is its root alone."""
        if past // SPAN != self._span:
            self._span, self._steps = past // SPAN, []
        most = 1
        for sequence, (signal, tree) in enumerate(proposals):
            if len(tree) > 1:
                most = max(most, len(tree))
                walks = self._walks[sequence]
                if len(walks) < self._open:
                    hoped = sum(self._of(signal).reach()[1 : len(tree)])
                    walks.append(Walk(signal, tree, hoped))
        self.rows = 1
        self._calm += 1
        self._idle += 1
        self.expect(float(len(proposals)), self._cost(1))
        if most == 1:
            return 1
        extra, dearer = self._host.surcharge(self._cost(1)), self._pace.dearer
        parts = [
            (self._of(signal).reach()[: len(tree)], fit)
            for (signal, tree), fit in zip(proposals, self._fits, strict=True)
            if len(tree) > 1
        ]
        factors = [fit.factor for _, fit in parts]
        last = min(most, room)
        self._cost(last)
        steps = self._steps  # plain numbers and lists: this runs between two steps
        expected = float(len(proposals))
        best, rate = 1, expected / steps[0] * self._gain
        for row in range(1, last):
            for (reach, _), factor in zip(parts, factors, strict=True):
                if row < len(reach):
                    expected += factor * reach[row]
            if self._whole and row + 1 < most:
                continue
            worth = expected / (steps[row] * dearer + extra)
            if worth > rate:
                best, rate = row + 1, worth
        self.rows = best
        if best > 1:
            self._calm = self._idle = 0
            told = sum(fit.told * sum(reach[1:best]) for reach, fit in parts)
            self.expect(len(proposals) + told, steps[best - 1] * dearer + extra)
        return best

    def bid(self, drafters: Sequence[Drafter | None], room: int) -> Bid | None:
        """None: what this controller knows of costs nothing to make."""
        tokens, spent = self._next
        self.expect(tokens - sum(d is None for d in drafters), spent)
        return None

    def bought(
        self, proposals: Sequence[tuple[int, Tree]], drafters: Sequence[Drafter | None]
    ) -> int:
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
