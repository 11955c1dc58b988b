"""A draft model that goes on writing while the target checks what it wrote before."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from threading import Event
from typing import ClassVar

from graftline.errors import GraftlineError
from graftline.runtimes.draft_reader import Reader
from graftline.runtimes.drafter import Bid
from graftline.runtimes.drafting import Draft
from graftline.runtimes.resources import Resources, missing
from graftline.runtimes.sampling import Sampling
from graftline.runtimes.session import Scores
from graftline.runtimes.verdict import Verdict
from graftline.tree import Tree

CROWDED = 0.5
"""What a draft is taken to cost more, as a share, beside a step that wants the same cores. On two
cores that both fill, six steps took 0.9 to 1.8 times their price (SmolLM2 and its int8 draft)."""


@dataclass
class Pearl:
    """PEARL (arXiv 2408.11850): draft and target run at the same time.

    The draft writes one stream of best tokens in a thread of its own. With nothing in the stream
    the target scores the last token alone while the first tokens are drafted, and so verifies the
    first of them (pre-verify); else it scores what is there while the draft continues as if all of
    it stood (post-verify). Tokens the target chose are taken off the stream's front; at the first
    other one the stream is emptied. A step's share of the stream is complete before its verdict is
    read, so nothing depends on which of the two is faster.

    Each sequence has its own thread and caches: it drafts beside the target's step, when no other
    sequence waits for it, and ends as its own verdict says.
    """

    branching: ClassVar[bool] = False
    rows: int = 6
    """Most rows of a proposal, and one more than the tokens drafted during a step."""
    overlap: float = 0.0
    """Share of the draft's time that the target's step hides: 0 where it fills all cores. Without
    any, and without cores for both, they are taken to hinder each other."""
    signal: int = field(default=0, init=False)
    reads: float = field(default=0, init=False)

    def __post_init__(self) -> None:
        if not 2 <= self.rows <= 64 or not 0.0 <= self.overlap <= 1.0:
            raise GraftlineError(
                f"pearl: rows={self.rows}, overlap={self.overlap} are not valid; use 2 to 64 "
                "rows and an overlap of 0 to 1"
            )
        self._thread = ThreadPoolExecutor(1)
        self._reset()

    def _reset(self) -> None:
        self._stream: list[int] = []
        self._scored: list[int] = []
        self._writing: Future[list[int]] | None = None
        self._stop = Event()

    def equip(self, resources: Resources) -> None:
        """Open the draft engine, on caches that the target does not write to meanwhile."""
        if resources.draft is None:
            raise missing("pearl", "draft")
        self._resources = resources
        engine = resources.draft().alone()
        self._reader = Reader(engine, resources.vocabulary)
        crowded = not self.overlap and 2 * engine.threads > (os.cpu_count() or 1)
        self._hindrance = CROWDED if crowded else 0.0

    def fork(self) -> Pearl:
        other = Pearl(self.rows, self.overlap)
        other.equip(self._resources)
        return other

    def start(self, context: Sequence[int]) -> None:
        self._finish()
        self._reset()
        self._reader.start(context)
        self.reads = 0

    def propose(self, budget: int) -> Tree:
        """The root: nothing is drafted unless it is paid for."""
        self.signal = 0
        return Tree.chain(self._reader.tokens[-1:])

    def draft(self, bid: Bid) -> Draft:
        self.signal = self.foresight()
        if self._reader.unread:  # not beside the target, which would wait for it
            yield self._reader.read([])
        self._scored = self._stream[: min(bid.rows, self.rows) - 1]
        count = min(self.rows - 1, bid.rows - 1, self._reader.room - len(self._stream))
        self.reads = max(count, 0)
        self._writing = self._thread.submit(self._write, list(self._stream), count)
        return Tree.chain([self._reader.tokens[-1], *self._scored])

    def observe(self, tree: Tree, verdict: Verdict, scores: Scores, row: int) -> None:
        fresh = verdict.tokens(tree)
        if any(a != b for a, b in zip(fresh, self._scored, strict=False)):
            self._stop.set()
        stream = self._finish()
        stands = fresh == stream[: len(fresh)]
        self._stream = stream[len(fresh) :] if stands else []
        self._scored, self._stop = [], Event()
        self._reader.append(fresh)

    def prior(self, signal: int) -> Sequence[float]:
        return (1.0,)

    def hope(self, foresight: int) -> Sequence[float]:
        """Where the target left the stream, the next step has nothing to verify."""
        share = self._reader.engine.agreement
        verifying = 1.0 / (2.0 - share ** (self.rows - 1))
        return (1.0, *(verifying * share**row for row in range(1, self.rows)))

    def price(self, reads: float) -> float:
        return reads * self._reader.milliseconds * (1.0 - self.overlap + self._hindrance)

    def share(self, sequences: int) -> float:
        return 1.0

    def debt(self) -> float:
        return self._reader.debt

    def foresight(self) -> int:
        """One class: a step with nothing to verify is what the next one costs."""
        return 1

    def _write(self, stream: list[int], count: int) -> list[int]:
        """Continue the stream; given up once the verdict has made it worthless."""
        for _ in range(count):
            guess = self._reader.guess(self._reader.read(stream).scores(), 0, Sampling())
            if self._stop.is_set() or not guess.known:
                break
            stream.append(guess.best)
        return stream

    def _finish(self) -> list[int]:
        """The stream once the thread is through; what it raised is raised here."""
        writing, self._writing = self._writing, None
        return self._stream if writing is None else writing.result()
