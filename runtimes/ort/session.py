"""The `ort-cpu` session: ONNX Runtime with caches written in place.

Every array a step reads or writes is bound once; a step writes a few integers into them and calls
the engine.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from copy import copy
from itertools import pairwise
from pathlib import Path
from typing import Any, Self

import numpy as np

from graftline.errors import BackendError
from graftline.facts import DecoderFacts
from graftline.ports import Port, by_role
from graftline.runtimes.ort.caches import HostCaches
from graftline.runtimes.ort.calls import CHUNK, MOST_ROWS
from graftline.runtimes.ort.forms import NO_FORMS, Forms
from graftline.runtimes.ort.packed import PackedCall
from graftline.runtimes.ort.seats import HostSeats
from graftline.runtimes.ort.step_arrays import Assembly, OutputMemory, StepArrays, taps_of
from graftline.runtimes.scores import copied, joined
from graftline.runtimes.session import (
    Bools,
    Floats,
    Ints,
    Scores,
    Show,
    Tap,
    call_starts,
    check_prompt,
)
from graftline.runtimes.slots import check_scattered, mask_kinds


class OrtSession(HostSeats):
    """A lowered decoder opened on ONNX Runtime's CPU provider. See `runtimes.session.Session`."""

    device: str = "cpu"
    """Where the caches lie."""

    def __init__(
        self,
        graph: Path,
        facts: DecoderFacts,
        ports: Sequence[Port],
        *,
        capacity: int | None = None,
        threads: int | None = None,
        forms: Forms = NO_FORMS,
    ) -> None:
        """`forms`: other graphs of the same engine, for steps that need no mask or are of several
        sequences."""
        self.facts, self.ports = facts, tuple(ports)
        self.threads = threads or os.cpu_count() or 1
        self.most_sequences: int | None = None
        self.row_invariant = False
        self.exact_rows: int | None = None
        self.same_rows: int | None = None
        self.largest = facts.positions or 4096
        self.capacity = min(capacity or self.largest, self.largest)
        self._graph = graph
        self._distances: set[str] | None = None
        self._session, self._forms = self._open(), forms
        self._caches = [p for p in self.ports if p.mirror is not None]
        self._tree = bool(by_role(self.ports, "mask"))
        self._taps = taps_of(self.ports)
        named = by_role(self.ports, "topk_ids", "out")
        self.candidates = int(named[0].shape[-1]) if named else 0
        self._lengths = np.zeros(0, np.int64)
        self._calls: dict[tuple[int, int, int, int, bool], StepArrays] = {}
        self._packed: dict[tuple[int, int], PackedCall] = {}
        self._memory = HostCaches(self._caches)
        self._outputs, self._together = OutputMemory(), OutputMemory()
        self._guests = []
        self._last: StepArrays | None = None
        self._turn = 0
        self.resumes = None
        self.reset(1)

    def sibling(self, host: OrtSession | None = None, capacity: int | None = None) -> Self:
        """The same engine with caches of its own, of `capacity` positions where fewer will do, or
        with those of `host`, a session of the same architecture with at least its blocks: then only
        `follow` may be called.

        Raises BackendError when `host` has no caches of these shapes.
        """
        other = copy(self)
        other._calls, other._packed, other._guests = {}, {}, []
        other._memory = HostCaches(self._caches)
        other._outputs, other._together = OutputMemory(), OutputMemory()
        other._lengths, other.resumes = np.zeros(0, np.int64), None
        if host is None:
            other.capacity = min(capacity or self.capacity, self.capacity)
            other.reset(1)
            return other
        if not _cache_shapes(self.ports) <= _cache_shapes(host.ports):
            raise BackendError(
                "these two engines have caches of different shapes, which cannot be shared"
            )
        other.capacity, other._memory = host.capacity, host._memory
        host._guests.append(other)
        return other

    def follow(
        self,
        row: int,
        length: int,
        tokens: Sequence[int],
        asked: int = 1,
        features: Floats | None = None,
        show: Show | None = None,
    ) -> Scores:
        """The last `asked` rows' scores (N of them) of `tokens`, put behind the first `length`
        slots of sequence `row`. On the caches of a host they lie where the host's next step writes.
        `features` [N, H]: what a draft head reads with them; `show` is shown the hidden states of
        all rows, unless it is a single one.
        """
        if len(tokens) == 1:  # nearly all calls of a draft
            call = self._call(1, 1, 1, row, chains=True)
            call.set_features(features)
            call.set_chain(tokens, length)
            return self._run(call)
        count = len(tokens)
        starts = call_starts(count, asked, CHUNK) if count > CHUNK else [0]
        for start, end in pairwise([*starts, count]):
            part = np.asarray(tokens[start:end], np.int64)
            wanted = asked if end == count else 1
            call = self._call(1, len(part), wanted, row, chains=True)
            call.rows[0] = np.arange(len(part) - wanted, len(part))
            call.set_features(None if features is None else features[start:end])
            call.set_chain(part, length + start)
            self._open_block(call, wanted, length + end)
            scores = self._run(call)
            if show is not None:
                show(self._shown())
        return scores  # pyright: ignore[reportPossiblyUnboundVariable]

    def _open_block(self, call: StepArrays, asked: int, end: int) -> None:
        """Let the last `asked` rows see all slots before `end`, where they are a block of a draft
        head that sees itself whole; other rows see those before them."""

    def follow_rows(
        self,
        first: int,
        starts: Sequence[int],
        tokens: Sequence[int],
        features: Floats | None = None,
    ) -> Scores:
        """The scores [B, 1] of one token for each of the sequences from `first` on, in one call:
        each is put into the slot that `starts` says, and sees all slots before it. `features`
        [B, H]: what a draft head reads with them."""
        call = self._call(len(tokens), 1, 1, first, chains=True)
        call.filled = -1
        call.tokens[:, 0] = tokens
        call.set_features(None if features is None else features[:, None])
        call.write_index[:] = starts
        call.positions[:, 0] = starts
        if call.mask is not None:
            for row, start in enumerate(starts):
                call.mask_chain(row, start, 1)
        return self._run(call)

    def follow_level(
        self,
        row: int,
        base: int,
        start: int,
        tokens: Sequence[int],
        features: Floats | None,
        depth: int,
        seen: Bools,
    ) -> Scores:
        """The scores [1, N] of a level of a tree. See `TreeSession.follow_level`."""
        positions = np.full(len(tokens), base - 1 + depth, np.int64)
        call = self._placed(row, start, tokens, positions)
        assert call.mask is not None, "a graph that takes trees has a mask"
        call.set_features(features)
        end = base + seen.shape[1]
        call.mask[0, 0, :, :base] = True
        call.mask[0, 0, :, base:end] = seen
        call.mask[0, 0, :, end:] = False
        return self._run(call)

    @property
    def supports_trees(self) -> bool:
        """True when the bundle was made with tree-mask."""
        return self._tree

    def prefill(self, prompts: Sequence[Ints]) -> Scores:
        """Commit one prompt per sequence, each on its own, in chunks; scores of each last row."""
        return joined([self.read(row, prompt) for row, prompt in enumerate(prompts)])

    def read(self, row: int, tokens: Ints, show: Show | None = None) -> Scores:
        """Commit tokens behind what the sequence has, in chunks. See `Session.read`."""
        check_prompt(self, int(self._lengths[row]), len(tokens), "shorten the prompt")
        for start in range(0, len(tokens), CHUNK):
            part = np.asarray(tokens[start : start + CHUNK], np.int64)
            scores = self._chunk(row, part)
            if show is not None:
                show(self._shown())
            self._lengths[row] += len(part)
        return copied(scores)  # pyright: ignore[reportPossiblyUnboundVariable]

    def _shown(self) -> Mapping[Tap, Floats]:
        """The hidden states of all rows of the last call, each [N, H]."""
        assert self._last is not None, "a call was made"
        outputs = self._last.outputs
        return self._lazy(lambda name: outputs[name][0])

    def _chunk(self, row: int, part: Ints) -> Scores:
        count = len(part)
        call = self._call(1, count, 1, row, chains=True)
        call.filled = -1
        call.tokens[0] = part
        call.write_index[0] = self._lengths[row]
        call.positions[0] = self._lengths[row] + np.arange(count)
        call.rows[0, 0] = count - 1
        if call.mask is not None:
            call.mask_chain(0, int(self._lengths[row]), count)
        return self._run(call)

    def score(
        self,
        tokens: Ints,
        depth: Ints | None = None,
        mask: Bools | None = None,
        counts: Sequence[int] | None = None,
    ) -> Scores:
        """Score N new rows per sequence. See `Session.score`."""
        batch, count = tokens.shape
        if count > MOST_ROWS:
            raise BackendError(f"{count} rows in one step; this session scores at most {MOST_ROWS}")
        if mask is not None and not self._tree:
            raise BackendError("this bundle scores chains only; rebuild it with the pass tree-mask")
        if mask is not None and not self._lengths.all():
            raise BackendError("a tree needs a committed prompt before it; prefill first")
        each = [count] * batch if counts is None else counts
        if self.resumes is not None:
            found = self.resumes.score(tokens, each, depth, mask)
            self.resumes.forget()
            if found is not None:
                return found
        if batch > 1 and count > 1:
            if self.packs and mask is None:
                return self._packed_rows(tokens, each)
            return self._ragged(tokens, depth, mask, each)
        return self._rows(0, batch, tokens, depth, mask)

    def chains(self, first: int, tokens: Ints, counts: Sequence[int]) -> Scores:
        """The scores of chains, of so many rows, of the sequences from `first` on."""
        tokens = tokens[:, : max(counts)]
        batch, count = tokens.shape
        if batch == 1 or count == 1:
            return self._rows(first, batch, tokens, None, None)
        if self.packs:
            return self._packed_rows(tokens, counts, first)
        whole = Assembly(self._together, batch, count)
        for row in range(batch):
            part = tokens[row : row + 1, : counts[row]]
            whole.put(row, self._rows(first + row, 1, part, None, None), 0)
        return whole.scores()

    def _ragged(
        self, tokens: Ints, depth: Ints | None, mask: Bools | None, counts: Sequence[int]
    ) -> Scores:
        """One engine call for each sequence of several rows, and one for all those of a single row
        together, if they are several: GroupQueryAttention takes several new rows for one sequence
        only. In that call the others' first rows go along, whose places they write again."""
        batch, width = tokens.shape
        whole = Assembly(self._together, batch, width)
        single = [row for row in range(batch) if counts[row] == 1]
        if len(single) > 1:
            scores = self._rows(0, batch, tokens[:, :1], None, None)
            for row in single:
                whole.put(row, scores, row)
        for row in range(batch):
            if (count := counts[row]) > 1 or len(single) == 1:
                whole.put(row, self.tree(row, tokens, depth, mask, count), 0)
        return whole.scores()

    def tree(
        self, row: int, tokens: Ints, depth: Ints | None, mask: Bools | None, count: int
    ) -> Scores:
        """The scores [1, count] of the first `count` rows of one sequence, of what `score` is given
        for all of them."""
        steps = None if depth is None else depth[:, :count]
        seen = None if mask is None else mask[:, :count, :count]
        return self._rows(row, 1, tokens[row : row + 1, :count], steps, seen)

    def score_slots(self, tokens: Ints, positions: Ints, mask: Bools) -> Scores:
        """Score N new rows per sequence, by explicit slots. See `Session.score_slots`."""
        batch, count = tokens.shape
        if self._distances is None:
            self._distances = mask_kinds(self._graph) - {"causal"}
        check_scattered(self._tree, self._distances)
        if count > MOST_ROWS:
            raise BackendError(f"{count} rows in one step; this session scores at most {MOST_ROWS}")
        answers: list[Scores] = []
        for row in range(batch):
            call = self._placed(row, int(self._lengths[row]), tokens[row], positions[row])
            assert call.mask is not None, "a bundle with trees has a mask"
            call.mask[0, 0, :, : mask.shape[2]] = mask[row]
            call.mask[0, 0, :, mask.shape[2] :] = False
            answers.append(self._run(call))
            if batch > 1:
                answers[-1] = copied(answers[-1])
        return answers[0] if batch == 1 else joined(answers)

    def _placed(
        self, row: int, start: int, tokens: Ints | Sequence[int], positions: Ints
    ) -> StepArrays:
        """The call for rows of sequence `row` from slot `start` on, at any positions, with scores
        of all of them; what they see is yet to be filled in."""
        call = self._call(1, len(tokens), len(tokens), row)
        call.filled = -1
        call.tokens[0], call.positions[0] = tokens, positions
        call.write_index[0] = start
        return call

    def _rows(
        self,
        first: int,
        batch: int,
        tokens: Ints,
        depth: Ints | None,
        mask: Bools | None,
    ) -> Scores:
        """One engine call for the sequences first .. first + batch - 1."""
        count, lengths = tokens.shape[1], self._lengths[first : first + batch]
        call = self._call(batch, count, count, first, chains=mask is None)
        if batch == 1 and mask is None:
            call.set_chain(tokens[0], int(lengths[0]))
            return self._run(call)
        call.tokens[:] = tokens
        call.filled = -1
        call.write_index[:] = lengths
        steps = np.arange(count) if depth is None else depth[first : first + batch]
        call.positions[:] = lengths[:, None] + steps
        if call.mask is not None:
            for row in range(batch):
                start = int(lengths[row])
                call.mask_chain(row, start, count)
                if mask is not None:
                    call.mask[row, 0, :, start : start + count] = mask[first + row]
        return self._run(call)


def _cache_shapes(ports: Sequence[Port]) -> set[tuple[Any, ...]]:
    return {(p.name, p.direction, p.shape, p.dtype) for p in ports if p.mirror is not None}
