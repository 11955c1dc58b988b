"""One step of all lanes: what is scored, and what that is expected to bring and to take."""

from __future__ import annotations

from collections.abc import Sequence
from time import perf_counter

from graftline.runtimes.control.choose import Choice, Offer, Terms, choose
from graftline.runtimes.decoding import Decoding
from graftline.runtimes.lane import Lane
from graftline.runtimes.marks import Marks
from graftline.runtimes.step_story import StepStory, considered
from graftline.tree import Tree

SPAN = 64
"""Committed positions over which a step is taken to cost the same."""
PADDING = Tree.chain((0,))
"""What a sequence scores whose prompt is still being read: nothing of it is kept."""


class JointStep:
    """A step in which every one of the `seated` sequences scores at least `least` rows, and those
    of `lanes` what is chosen for all of them together; `room` rows fit behind the longest."""

    def __init__(
        self, lanes: Sequence[Lane], seated: Sequence[Decoding], room: int, least: int
    ) -> None:
        self._lanes, self._room, self._least, self._batch = lanes, room, least, len(seated)
        self._past = sum([one.length for one in seated]) // len(seated) // SPAN * SPAN
        self._decoding = sum([len(lane.members) for lane in lanes])
        self._costs = next((x.control.costs for x in lanes if x.control.costs is not None), None)
        self.trees = [PADDING] * len(seated)
        """What each seat scores."""
        self._plain, self._believed, self._tokens, self._kind = 0.0, 0.0, 0.0, "plain"
        """Milliseconds of a step without drafts and of this one, by their costs; tokens expected;
        and what kind of step it is to the costs."""
        self._seconds = 0.0
        """What choosing took."""
        self._offers: list[Offer] = []
        self._total, self._expected = 0, 0.0
        """What was chosen from, the rows without any of it, and the milliseconds expected."""

    def plan(self, branches: bool) -> None:
        """Choose the tree that each sequence scores."""
        lanes = self._lanes
        for lane in lanes:
            lane.propose(branches)
        rows = self._fixed(branches)
        drafting = 0.0 if self._costs is None else self._choose(rows, branches)
        began, tokens = perf_counter(), float(self._decoding)
        for lane in lanes:
            tokens += lane.place(self.trees, rows | lane.bought)
        if self._costs is not None:
            total = sum([max(len(tree), self._least) for tree in self.trees])
            straight = all([len(tree) == 1 or tree.is_chain for tree in self.trees])
            self._tokens, self._believed = tokens, self._cost(total, not straight) + drafting
            if any([lane.drafted for lane in lanes]):
                self._kind = "chain" if straight else "tree"
            if any([lane.bought for lane in lanes]):
                self._kind = "paid"
        self._seconds += perf_counter() - began

    def took(self, milliseconds: float, fresh: Sequence[tuple[Lane, Decoding, list[int]]]) -> None:
        """The step has ended, and these sequences emitted these tokens."""
        began = perf_counter()
        for lane, one, tokens in fresh:
            lane.learn(one, tokens)
        told = Marks()
        if self._costs is not None:
            told = self._compared(milliseconds, sum([len(tokens) for _, _, tokens in fresh]))
        seconds = self._seconds + perf_counter() - began
        for lane in self._lanes:
            lane.marks = lane.marks.plus(told._replace(seconds=seconds))

    def story(
        self,
        milliseconds: float,
        lane: Lane,
        one: Decoding,
        path: Sequence[int],
        fresh: Sequence[int],
    ) -> StepStory:
        """What was chosen for a sequence, why, and what came of it, once the step has ended."""
        tree, known = self.trees[one.seat], self._costs is not None
        signal, proposed = lane.proposals[lane.members.index(one)]
        offers = [offer for offer in self._offers if offer.sequence == one.seat]
        return StepStory(
            one.length - len(fresh), self._kind, tuple(tree.token_list), tuple(tree.parent_list),
            tuple(path), tuple(fresh), len(proposed), signal, milliseconds,
            self._tokens if known else None, self._expected if known else None,
            considered(offers[-1], self._total, self._cost) if offers else (),
        )  # fmt: skip

    def _compared(self, milliseconds: float, emitted: int) -> Marks:
        """Compare with what was believed; what had been expected."""
        assert self._costs is not None
        pace, lanes, believed = self._costs.pace, self._lanes, self._believed
        slower = max([self._slower(lane) for lane in lanes if lane.drafted], default=1.0)
        value = pace.value
        pace.step(self._kind, milliseconds / believed, slower)
        for lane in lanes:  # a drafted step of several recipes says nothing of one
            if self._kind == "plain" or len(lanes) == 1:
                pace.record(lane.control.name, self._kind, self._batch, milliseconds / believed)
            if lane.control.paid is not None:
                lane.control.paid.took(bool(lane.bought))
        self._expected = believed * value * slower
        plain = self._tokens * self._plain / self._decoding * value
        return Marks(0.0, 1, self._decoding, self._tokens, self._expected, plain)

    def _slower(self, lane: Lane) -> float:
        assert self._costs is not None
        return self._costs.pace.slower(lane.control.name, self._kind, self._batch)

    def _fixed(self, branches: bool) -> dict[int, int]:
        """Rows of the lanes that know no costs: as many as are proposed, up to a fixed number."""
        rows: dict[int, int] = {}
        for lane in self._lanes:
            most = min(lane.control.rows, self._room)
            if lane.control.costs is None and most > 1:
                lane.draft_freely(most, branches)
                pairs = zip(lane.members, lane.proposals, strict=True)
                rows |= {one.seat: min(most, len(tree)) for one, (_, tree) in pairs}
        return rows

    def _choose(self, rows: dict[int, int], branches: bool) -> float:
        """Add to `rows` those of the lanes that know costs, and draft what is worth its time; the
        milliseconds of that."""
        began = perf_counter()
        lanes = [lane for lane in self._lanes if lane.control.costs is not None]
        total = self._batch * self._least + sum([max(n - self._least, 0) for n in rows.values()])
        plain = self._plain = self._cost(total, False)
        slope = min([(self._cost(total + more, False) - plain) / more for more in (8, 64)])
        cut = max(self._decoding * slope / plain, 0.002)
        terms = Terms(self._batch, self._room, self._past, cut)
        free = [offer for lane in lanes for offer in lane.offers(terms)]
        promises = [offer for lane in lanes for offer in lane.promises(terms)]
        self._offers, self._total = free + promises, total
        choice, bought = self._best(free, total), set[int]()
        if promises:
            seats = {offer.sequence for offer in promises}
            others = [offer for offer in free if offer.sequence not in seats]
            either = self._best(others + promises, total)
            if either.rate > choice.rate:
                choice, bought = either, seats & either.rows.keys()
        rows |= choice.rows
        self._seconds = perf_counter() - began
        return sum([lane.buy(bought, terms, choice.rate, branches) for lane in lanes])

    def _best(self, offers: Sequence[Offer], total: int) -> Choice:
        return choose(offers, self._decoding, self._cost, total, self._least)

    def _cost(self, rows: int, branching: bool) -> float:
        assert self._costs is not None
        return self._costs.of(rows, branching, self._past, self._batch)
