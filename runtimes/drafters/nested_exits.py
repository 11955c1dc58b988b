"""Exits of one target as nested drafts: the first that is sure enough writes the next token."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import ClassVar

from graftline.errors import GraftlineError
from graftline.exits import EXITS
from graftline.runtimes.draft_engine import DraftEngine, Read
from graftline.runtimes.draft_reader import Guess, Reader
from graftline.runtimes.drafter import Bid
from graftline.runtimes.drafters.early_exit import EarlyExit, ExitReader
from graftline.runtimes.drafters.sorted_draft import SortedDraft
from graftline.runtimes.exits import Exit
from graftline.runtimes.nested_reader import NestedReader
from graftline.runtimes.resources import Resources, missing
from graftline.runtimes.sampling import Sampling
from graftline.runtimes.session import Scores


class ExitsReader(NestedReader):
    """All exits of a target on one sequence. Of every row that any of them reads, what leaves the
    `first` one's blocks is kept for the blocks behind those."""

    def __init__(self, ways: Sequence[Exit], vocabulary: int = 0) -> None:
        self.first = ExitReader(ways[0], vocabulary)
        others = [Reader(way.engine, vocabulary) for way in ways[1:-1]]
        super().__init__([self.first, *others], ways[-1].engine, vocabulary)
        self._row = 0
        """Of the draft under way, the last row that was read."""

    def ask(self, depth: int, ahead: Sequence[int]) -> Read:
        self._row = len(ahead)
        return super().ask(depth, ahead)

    def guess(
        self, scores: Scores, place: int, sampling: Sampling, exact: bool = False
    ) -> Guess:
        self.first.note(scores, place, self._row)
        return super().guess(scores, place, sampling, exact)


@dataclass
class NestedExits(SortedDraft, EarlyExit):
    """S2D (arXiv 2407.01955) within the target itself: at every position its first exit answers,
    and the next deeper one after it where the answer's chance is too small. The blocks behind the
    first exit verify, from the hidden states that it, or one deeper, has left of every row.

    Where DEL settles for one exit before a draft, here each token has its own.
    """

    name: ClassVar[str] = "nested-exits"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.exit:
            raise GraftlineError(
                f"{self.name}: exit={self.exit}: it drafts with all exits of the bundle; leave out "
                "`exit`, or use early-exit"
            )

    def _engines(self, resources: Resources) -> Sequence[DraftEngine]:
        exits = [] if resources.exits is None else resources.exits()
        self.ways = [way for way in exits if not way.adapted]
        if len(self.ways) < 2 or self.ways[0].head is None:
            raise missing(self.name, EXITS)
        return [way.engine for way in self.ways]

    def _reading(self, engines: Sequence[DraftEngine]) -> NestedReader:
        reader = ExitsReader(self.ways, self._resources.vocabulary)
        self._exit = reader.first
        return reader

    def _answer(
        self, ahead: Sequence[int], chance: float, bid: Bid
    ) -> Generator[Read, Scores, tuple[Guess, float]]:
        if len(ahead) + 1 < self._most(bid):
            return (yield from super()._answer(ahead, chance, bid))
        part = self._part(0, ahead)  # no room for what comes next: the row is read for its states
        read = self._nest.ask(0, ahead)
        scores = yield read
        self.reads += part * read.share
        guess = self._nest.guess(scores, 0, self._sampling)
        self._answers.append([(0, guess, True)])
        return guess, self._calibrations[0].of(guess.confidence)

    def _pays(self, chance: float, bid: Bid, depth: int) -> bool:
        """By the call of least cost among the exits that are asked."""
        call = bid.call(depth) * min(self._part(place) for place in self._asked)
        return chance >= bid.keep[depth] + call
