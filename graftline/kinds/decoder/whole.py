"""The law `whole`: an engine, in every way it is used, answers as the unmodified export does."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import cycle
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from graftline.errors import LawBroken
from graftline.facts import DecoderFacts
from graftline.kinds.decoder.probe import DEPTH, Ints, Probe, Sample
from graftline.law import LawRow
from graftline.models.reference import NORM
from graftline.nearness import AGREE, NEARBY, few_rows, gaps, limit, spread_gaps
from graftline.ports import Port, by_role

if TYPE_CHECKING:
    from graftline.runtimes.ort.session import OrtSession

Array = npt.NDArray[Any]
STEPS = (5, 16, 2, 31, 64)
"""Rows of the steps in which a sequence is read, over and over."""
ALONE = 4
"""Rows at the end of a sequence that are read one at a time."""


@dataclass(frozen=True)
class Answer:
    """What an engine gave for rows `rows` of a sample in some way of reading it: logits [R, V], and
    its taps [R, H] by port."""

    way: str
    sample: Sample
    rows: Ints
    logits: Array
    taps: dict[str, Array] = field(default_factory=dict[str, Array])


def answers(session: OrtSession, probe: Probe) -> Iterator[Answer]:
    """Every way a session reads: prompts in chunks, steps of many sizes, single rows, a tree and
    the path kept of it, a batch of two lengths. The session's caches are lost."""
    yield from _alone(session, probe.main)
    if session.supports_trees and len(probe.main.tokens) > 2 * DEPTH:
        yield from _tree(session, probe)
    yield from _batch(session, probe)


def _alone(session: OrtSession, sample: Sample) -> Iterator[Answer]:
    """Two chunks of prompt, then steps of many sizes, then rows one at a time."""
    tokens, count = sample.tokens, len(sample.tokens)
    session.reset(1)
    ends = sorted({max(1, count // 8), max(1, count // 5)})
    start = 0
    for end in ends:
        scores = session.prefill([tokens[start:end]])
        yield _answer(session, "a prompt in chunks", sample, [end - 1], scores.logits[0])
        start = end
    sizes = cycle(STEPS)
    while start < count:
        rows = min(next(sizes), max(count - ALONE - start, 1))
        yield from _step(session, sample, start, rows)
        start += rows


def _step(session: OrtSession, sample: Sample, start: int, rows: int) -> Iterator[Answer]:
    """One step of a chain, committed."""
    scores = session.score(sample.tokens[None, start : start + rows])
    way = "single rows" if rows == 1 else "steps of several rows"
    yield _answer(session, way, sample, range(start, start + rows), scores.logits[0])
    session.commit([range(rows)])


def _tree(session: OrtSession, probe: Probe) -> Iterator[Answer]:
    """All branches in one step, depth first, so that no row but the root stands at its depth; then
    the last branch is kept and continued."""
    fork, samples = probe.fork, [probe.main, *probe.branches]
    tree = _Tree.of([s.tokens[fork:-1] for s in samples])
    session.truncate([fork])
    scores = session.score(tree.tokens[None], tree.depth[None], tree.mask[None])
    logits, taps = scores.logits[0].copy(), _taps(session)
    for sample, path in zip(samples, tree.paths, strict=True):
        rows = fork + np.arange(len(path))
        kept = {name: tap[path] for name, tap in taps.items()}
        yield Answer("a tree", sample, rows, logits[path], kept)
    session.commit([tree.paths[-1].tolist()])
    last = samples[-1]
    for answer in _step(session, last, len(last.tokens) - 1, 1):
        yield Answer("the row behind a kept path", last, answer.rows, answer.logits, answer.taps)


@dataclass(frozen=True)
class _Tree:
    """Branches with a common start as one tree: rows in depth-first order."""

    tokens: Ints
    depth: Ints
    mask: npt.NDArray[np.bool_]
    paths: list[Ints]
    """The rows of every branch, root first."""

    @classmethod
    def of(cls, branches: Sequence[Ints]) -> _Tree:
        tokens: list[int] = []
        above: list[int] = []
        places: dict[tuple[int, ...], int] = {}
        paths: list[Ints] = []
        for branch in branches:
            path: list[int] = []
            for depth in range(len(branch)):
                key = tuple(int(t) for t in branch[: depth + 1])
                if key not in places:
                    places[key] = len(tokens)
                    tokens.append(key[-1])
                    above.append(path[-1] if path else -1)
                path.append(places[key])
            paths.append(np.asarray(path))
        mask = np.eye(len(tokens), dtype=np.bool_)
        for row, parent in enumerate(above):
            if parent >= 0:
                mask[row] |= mask[parent]
        return cls(np.asarray(tokens), mask.sum(axis=1) - 1, mask, paths)


def _batch(session: OrtSession, probe: Probe) -> Iterator[Answer]:
    """Two sequences of different lengths: their prompts, single rows together, then a chain."""
    samples = [probe.main, probe.other]
    ends = [len(s.tokens) for s in samples]
    chain = min(4, min(ends) - 1)
    starts = [max(1, ends[0] - chain - 3), max(1, ends[1] - chain - 8)]
    session.reset(2)
    given = session.prefill([s.tokens[:n] for s, n in zip(samples, starts, strict=True)])
    logits = given.logits.copy()
    for row, (sample, at) in enumerate(zip(samples, starts, strict=True)):
        yield Answer("prompts of a batch", sample, np.asarray([at - 1]), logits[row])
    for rows in (1, 1, chain):
        if any(at + rows > end for at, end in zip(starts, ends, strict=True)):
            break
        tokens = [s.tokens[at : at + rows] for s, at in zip(samples, starts, strict=True)]
        logits = session.score(np.stack(tokens)).logits.copy()
        for row, (sample, at) in enumerate(zip(samples, starts, strict=True)):
            yield Answer("a batch of two", sample, at + np.arange(rows), logits[row])
        session.commit([range(rows)] * 2)
        starts = [at + rows for at in starts]
    session.reset(1)


def _answer(
    session: OrtSession, way: str, sample: Sample, rows: Sequence[int], logits: Array
) -> Answer:
    taps = {name: tap[-len(rows) :] for name, tap in _taps(session).items()}
    return Answer(way, sample, np.asarray(rows), logits.copy(), taps)


def _taps(session: OrtSession) -> dict[str, Array]:
    """The first sequence's, of the last call."""
    return {name: tap[0].astype(np.float32) for name, tap in session.taps.items()}


@dataclass
class Taps:
    """Hidden states by port, [N, H] each, of the main sequence; NaN in rows that were not seen."""

    rows: int
    streams: dict[str, Array] = field(default_factory=dict[str, Array])

    @classmethod
    def of_own(cls, stream: Mapping[int, Array], ports: Sequence[Port]) -> Taps | None:
        """What the checkpoint's own model has for every tap; None where it lacks one."""
        taps = by_role(ports, "hidden", "out")
        places = {p.name: NORM if p.tap == "postnorm" or p.layer is None else p.layer for p in taps}
        if not all(place in stream for place in places.values()):
            return None
        found = {name: stream[place] for name, place in places.items()}
        return cls(max(map(len, found.values()), default=0), found)

    def note(self, answer: Answer, main: Sample) -> None:
        """Keep the taps of an answer to the main sequence."""
        if answer.sample is not main:
            return
        for name, tap in answer.taps.items():
            if name not in self.streams:
                self.streams[name] = np.full((self.rows, tap.shape[-1]), np.nan, np.float32)
            self.streams[name][answer.rows] = tap


def taps_law(graft: str, seen: Taps, known: Taps, facts: DecoderFacts, dtype: str) -> LawRow:
    """Law `taps`: what an engine brings out is the hidden state at that place. Raises LawBroken."""
    judged, most = dtype not in NEARBY, NEARBY.get(dtype) or limit(dtype, facts)
    worst, count = 0.0, 0
    for name, expected in known.streams.items():
        rows = ~np.isnan(seen.streams[name]).all(axis=-1)
        got, wanted = seen.streams[name][rows], expected[rows]
        if got.shape != wanted.shape or not len(got):
            raise LawBroken(graft, "taps", f"'{name}'", f"{got.shape} in place of {wanted.shape}")
        off = float(gaps(got, wanted).max() if judged else np.mean(spread_gaps(got, wanted)))
        if not off <= most:
            by = f"{off:.2g} of the largest number in a row, above {most:.2g}"
            raise LawBroken(graft, "taps", f"'{name}'", by)
        worst, count = max(worst, off), count + len(got)
    what = f"{count} rows of {', '.join(known.streams)}"
    return LawRow(graft, "taps", "held", what, worst, most)


def whole(
    graft: str, session: OrtSession, probe: Probe, facts: DecoderFacts, dtype: str, seen: Taps
) -> LawRow:
    """Law `whole`: the engine's logits are the export's, as near as the precision rounds.

    `dtype` is the coarsest precision on the way; int8 and int4 must be near. `seen` takes the taps.
    Raises LawBroken.
    """
    judge = _Nearby(graft, dtype) if dtype in NEARBY else _Equal(graft, limit(dtype, facts))
    for answer in answers(session, probe):
        seen.note(answer, probe.main)
        for part in few_rows(*answer.logits.shape):
            rows, logits = answer.rows[part], answer.logits[part]
            places, expected = answer.sample.of(rows)
            if len(places):
                judge.compare(answer, logits[places], expected, rows[places])
    return judge.row(probe)


@dataclass
class _Rows:
    """What was compared so far: rows and agreeing choices by the way they were read."""

    graft: str
    most: float
    ways: dict[str, int] = field(default_factory=dict[str, int])
    agree: int = 0

    @property
    def count(self) -> int:
        return sum(self.ways.values())

    def note(self, way: str, got: Array, expected: Array) -> None:
        self.ways[way] = self.ways.get(way, 0) + len(got)
        self.agree += int(np.sum(got.argmax(-1) == expected.argmax(-1)))

    def told(self, probe: Probe) -> str:
        if not self.count:
            raise LawBroken(self.graft, "whole", "logits", "nothing was compared")
        ways = ", ".join(f"{count} in {way}" for way, count in self.ways.items())
        return (
            f"{self.count} rows against the export ({ways}) of sequences of {probe.why}; "
            f"argmax equal in {self.agree}"
        )


@dataclass
class _Equal(_Rows):
    """Every row within rounding."""

    worst: float = 0.0

    def compare(self, answer: Answer, got: Array, expected: Array, rows: Ints) -> None:
        off = gaps(got, expected)
        self.note(answer.way, got, expected)
        self.worst = max(self.worst, float(off.max()))
        if not self.worst <= self.most:
            at = int(rows[int(off.argmax())])
            by = f"{self.worst:.2g} of the largest logit from the export, above {self.most:.2g}"
            raise LawBroken(self.graft, "whole", f"row {at} ({answer.way})", by)

    def row(self, probe: Probe) -> LawRow:
        return LawRow(self.graft, "whole", "held", self.told(probe), self.worst, self.most)


class _Nearby(_Rows):
    """On average near, and mostly of one mind: what quantized weights owe."""

    def __init__(self, graft: str, dtype: str) -> None:
        super().__init__(graft, NEARBY[dtype])
        self.dtype, self.off = dtype, list[float]()

    def compare(self, answer: Answer, got: Array, expected: Array, rows: Ints) -> None:
        self.note(answer.way, got, expected)
        self.off += spread_gaps(got, expected).tolist()

    def row(self, probe: Probe) -> LawRow:
        told, mean = self.told(probe), float(np.mean(self.off))
        if not mean <= self.most:
            by = f"{mean:.2g} of their spread from the export's on average, above {self.most:g}"
            raise LawBroken(self.graft, "whole", f"{self.dtype} logits", by)
        if not self.agree >= AGREE[self.dtype] * self.count:
            by = f"the export's choice in {self.agree} of {self.count} rows only"
            raise LawBroken(self.graft, "whole", f"{self.dtype} logits", by)
        return LawRow(self.graft, "whole", "held", told, mean, self.most)
