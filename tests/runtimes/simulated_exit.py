"""Decoding with an early exit on a clock that says what steps and calls of the exit take."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np
from simulated import answers, scores_of

from graftline.facts import DecoderFacts
from graftline.runtimes.control.costs import Costs, interpolated
from graftline.runtimes.control.paid import Paid
from graftline.runtimes.control.speculation import Speculation
from graftline.runtimes.decoding import Decoding
from graftline.runtimes.draft_engine import DraftEngine
from graftline.runtimes.draft_seats import TargetSeats
from graftline.runtimes.drafters import make_drafter
from graftline.runtimes.exits import Exit
from graftline.runtimes.joint_step import JointStep
from graftline.runtimes.lane import Lane
from graftline.runtimes.resources import Resources
from graftline.runtimes.rules.greedy import Greedy
from graftline.runtimes.session import Bools, Scores, Tap

VOCABULARY, TAP = 40_000, Tap("hidden", "prenorm", 0)
TARGET = {1: 2.7, 2: 2.97, 4: 3.2, 8: 3.9, 16: 5.2, 32: 8.0}
"""Milliseconds by rows of the small model of tests/bench/results/2026-11-28-early-exit.md."""
BEYOND = 1 << 30
"""A position behind all text."""
EXIT, REST, SHARED = 0.16 * 2.7, 0.93, 0.12
"""Milliseconds of a call of its exit; the share of a step that is left behind it; and what every
further sequence of a call takes over the first."""


class SimulatedExit:
    """A target with an exit that is right with a chance of `accepted` a token, of which `believed`
    is known at first. A step takes what TARGET says, times `disturbed(kind)`: "plain" or "drafted".
    With `trees` the recipe drafts them; of what the likeliest token misses a share `second` is the
    next one. Each call takes `host` milliseconds more.
    """

    supports_trees, candidates = True, 3
    facts, capacity = DecoderFacts(VOCABULARY, 8, 1, 1, 1, 8, 8192), 8192

    def __init__(
        self,
        accepted: float,
        believed: float = 0.8,
        disturbed: Callable[[str], float] = lambda kind: 1.0,
        *,
        trees: bool = False,
        second: float = 0.5,
        host: float = 0.0,
    ) -> None:
        self.accepted, self._disturbed, self.now = accepted, disturbed, 0.0
        self._trees, self._second, self._host, self.branched = trees, second, host, 0
        self.plain, self.steps, self.tokens = 0.0, 0, 0
        self._random, self._texts, self._begun = np.random.default_rng(7), list[list[int]](), 0
        self._slots: dict[int, int] = {}
        """Tokens that were read last, by slot."""
        self.lengths = np.zeros(16, np.int64)
        seats, shared = TargetSeats(self), lambda rows: 1.0 + SHARED * (rows - 1)
        engine = DraftEngine(self, seats, EXIT, believed, shared)
        rest = SimpleNamespace(reads=TAP, supports_trees=True)
        resumes = SimpleNamespace(begin=self._begin)
        way = Exit(1, engine, rest, self._rest, resumes)  # type: ignore[arg-type]
        resources = Resources(exits=lambda: [way], vocabulary=VOCABULARY)
        self.drafter: Any = make_drafter("exit-tree" if trees else "early-exit", {}, resources)
        costs = Costs(dict(TARGET), {})
        control = Speculation("toy", costs, self.drafter.prior, paid=Paid("toy", costs))
        self.lane = Lane(control)

    def run(self, tokens: int, batch: int = 1) -> SimulatedExit:
        """Decode texts of so many tokens together."""
        with mock.patch("graftline.runtimes.lane.perf_counter", self._seconds):
            return self._run(tokens, batch)

    def _run(self, tokens: int, batch: int) -> SimulatedExit:
        ones: list[tuple[Decoding, list[int]]] = []
        self._texts = []
        for seat in range(batch):
            answer: list[int] = self._random.integers(1, VOCABULARY, tokens).tolist()
            prompt = self._random.integers(1, VOCABULARY, 20)
            one = Decoding(prompt, tokens, frozenset(), self.drafter.fork(), Greedy(), seat=seat)
            self.lane.join(one)
            self._texts.append([*prompt.tolist(), *answer])
            one.begin(scores_of(answer[:1]), 0)
            ones.append((one, answer))
        self.plain += (tokens - 1) * interpolated(TARGET, batch)
        self.tokens += (tokens - 1) * batch
        while ones:
            self._step(ones)
            for one, _ in ones:
                if one.done:
                    self.lane.leave(one)
            left = [pair for pair in ones if not pair[0].done]
            self._texts = [self._texts[one.seat] for one, _ in left]
            ones = left
            for seat, (one, _) in enumerate(ones):
                one.seat = seat
        return self

    def _seconds(self) -> float:
        return self.now / 1e3

    @property
    def speed(self) -> float:
        """Over plain decoding on an undisturbed machine."""
        return self.plain / self.now

    @property
    def each(self) -> float:
        """Tokens of a step."""
        return self.tokens / self.steps

    def _step(self, ones: Sequence[tuple[Decoding, list[int]]]) -> None:
        began, self._begun = self.now, 0
        step = JointStep([self.lane], [one for one, _ in ones], 1000, 1)
        step.plan(self._trees)
        self.branched += any(not tree.is_chain for tree in step.trees)
        rows = sum(len(tree) for tree in step.trees)
        emitted: list[tuple[Lane, Decoding, list[int]]] = []
        for one, answer in ones:
            tree = step.trees[one.seat]
            ahead = answer[len(one.tokens) :]
            fresh = one.judge(tree, scores_of(answers(tree, ahead)), 0)[1]
            emitted.append((self.lane, one, fresh))
        resumed = self._begun == len(ones)
        taken = self._rest(rows, 0, 1) if resumed else interpolated(TARGET, rows)
        self.now += taken * self._disturbed("drafted" if rows > len(ones) else "plain")
        self.steps += 1
        step.took(self.now - began, emitted)

    def _begin(self, row: int, begun: object) -> None:
        self._begun += 1

    def _rest(self, rows: int, past: float, batch: int) -> float:
        return REST * interpolated(TARGET, rows)

    def follow(self, row: int, length: int, tokens: Sequence[int], asked: int = 1) -> Scores:
        """The exit's guess of what comes behind these rows."""
        self._slots |= dict(enumerate(tokens, length))
        return self._guesses([(row, length + len(tokens))])

    def follow_level(
        self,
        row: int,
        base: int,
        start: int,
        tokens: Sequence[int],
        features: object,
        depth: int,
        seen: Bools,
    ) -> Scores:
        """The same behind nodes of a tree; nothing is right behind a path that is not."""
        self._slots |= dict(enumerate(tokens, start))
        true = self._texts[row][base : base + depth]
        paths = ([self._slots[base + place] for place in np.flatnonzero(one)] for one in seen)
        found = self._guesses([(row, base + depth if path == true else BEYOND) for path in paths])
        return Scores.of({key: part.swapaxes(0, 1) for key, part in found.parts().items()})

    def follow_rows(self, first: int, starts: Sequence[int], tokens: Sequence[int]) -> Scores:
        """The same of one row of several sequences."""
        return self._guesses([(first + place, start + 1) for place, start in enumerate(starts)])

    def _guesses(self, places: Sequence[tuple[int, int]]) -> Scores:
        self.now += EXIT * (1.0 + SHARED * (len(places) - 1)) + self._host
        ids = np.zeros((len(places), 1, self.candidates), np.int64)
        logits = np.zeros(ids.shape, np.float32)
        for at, (row, end) in enumerate(places):
            text, share = self._texts[row], float(np.clip(self._random.normal(0.5, 0.15), 0.1, 0.9))
            chance = self.accepted + 0.3 * (share - 0.5)
            drawn = self._random.random() if end < len(text) else 1.0
            second = chance <= drawn < chance + self._second * (1.0 - chance)
            ids[at, 0] = text[end] if drawn < chance else 0, text[end] if second else 1, 2
            logits[at, 0] = np.log([share, 0.9 * (1.0 - share), 0.1 * (1.0 - share)])
        taps = {TAP: np.zeros((len(places), 1, 4), np.float32)}
        return Scores(ids[..., 0], logits, ids, logits, None, taps)
