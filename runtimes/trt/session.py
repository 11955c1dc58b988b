"""The `trt` session: a TensorRT engine of fixed slots, every buffer on the GPU and owned once.

A step is one call for the whole batch: the host writes a few integers and the changed columns of
the mask into page-locked memory, launches one recorded CUDA graph, and reads a few integers back.
A step of fewer rows than its profile is padded with rows that nothing sees.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np

from graftline.errors import BackendError
from graftline.facts import DecoderFacts
from graftline.owners import HEAD
from graftline.ports import FEATURES, Port, by_role
from graftline.runtimes.fused_block import block_depth
from graftline.runtimes.fused_heads import FusedHeads
from graftline.runtimes.scores import STALE, DeviceScores, LazyTaps, copied, joined
from graftline.runtimes.session import (
    Bools,
    Floats,
    Ints,
    Scores,
    Show,
    Snapshot,
    Tap,
    check_prompt,
    rolled_back,
)
from graftline.runtimes.slots import check_scattered, mask_kinds
from graftline.runtimes.trt.caches import DeviceCaches, DeviceSlots
from graftline.runtimes.trt.device import Array, Device
from graftline.runtimes.trt.fused import DraftTable
from graftline.runtimes.trt.new_rows import NewRows
from graftline.runtimes.trt.plan import EnginePlan
from graftline.runtimes.trt.step import Extents, ProfileStep, extents_of

MOST_ROWS = 64
"""Most rows of a tree that the runtime drafts."""


class TrtSession:
    """A lowered decoder built by TensorRT. See `runtimes.session.Session`.

    `capacity` is at most the engine's slots less the rows of its widest step, which a padded step
    may fill. Raises BackendError where more is asked than was built.
    """

    def __init__(
        self,
        device: Device,
        plan: EnginePlan,
        facts: DecoderFacts,
        ports: Sequence[Port],
        graph: Path,
        capacity: int | None = None,
    ) -> None:
        self.plan, self.facts, self.ports = plan, facts, tuple(ports)
        self._device = device
        self.most_sequences: int | None = plan.batch
        self.row_invariant = False
        self.exact_rows: int | None = None
        self.same_rows: int | None = None
        self.costs_key = device.name
        """What step costs measured here are kept under."""
        self._caches = DeviceCaches(device, self.ports)
        self._tree = bool(by_role(self.ports, "mask"))
        self._selects = bool(by_role(self.ports, "rows"))
        self._outputs = {p.role: p for p in self.ports if p.direction == "out" and not p.state}
        taps = [*by_role(self.ports, FEATURES, "out"), *by_role(self.ports, "hidden", "out")]
        self._taps = {Tap.of(port): port for port in taps}
        self._widest = max(plan.decoding)
        self.largest = plan.check_capacity(self.ports, capacity)
        self._distances = sorted(mask_kinds(graph) - {"causal"})
        if self._tree and self._distances and self._widest < MOST_ROWS:
            raise plan.refusal(
                f"attention depends on distance ({', '.join(self._distances)}), so a tree is "
                f"scored in one call; trees have up to {MOST_ROWS} rows, and steps of "
                f"{self._widest} were built; choose --engine rows={MOST_ROWS}", rebuild=True
            )  # fmt: skip
        self.capacity = min(capacity or self.largest, self.largest)
        self._steps: dict[str, ProfileStep] = {}
        tables = by_role(self.ports, "table", "in")
        self.table = DraftTable(device, tables[0]) if tables else None
        """Of a fused engine: what its steps have learned, whoever runs them."""
        self.heads = FusedHeads.of(self.ports)
        """Of a fused engine that drafts by them instead."""
        self.depth = block_depth(self.ports)
        """Of a fused engine that drafts by a block: how many tokens."""
        self.steps_fused = bool(self.table or self.heads or self.depth)
        """Whether the engine verifies and drafts by itself."""
        self._elsewhere = {tables[0].name: self.table.address} if self.table else {}
        self._lengths = np.zeros(0, np.int64)
        self.reset(1)

    @property
    def lengths(self) -> Ints:
        """[B]: committed positions of each sequence."""
        return self._lengths

    packs = False
    """A batch is one call whatever it scores: a tree costs no more than a chain."""

    @property
    def supports_trees(self) -> bool:
        """True when the engine was built with tree-mask."""
        return self._tree

    def reset(self, batch: int) -> None:
        """Forget everything and make room for `batch` sequences."""
        self._make_room(batch, 0)
        self._lengths = np.zeros(batch, np.int64)

    def _make_room(self, batch: int, held: int) -> None:
        """Memory grows with the largest batch so far, to what the engine was built for; the first
        `held` sequences keep what they have."""
        if batch > self.plan.batch:
            raise self.plan.refusal(
                f"built for {self.plan.batch} sequences at once, not {batch}; ask for batch="
                f"{self.plan.batch}, or choose --engine batch={batch}", rebuild=True
            )  # fmt: skip
        if batch > self._caches.room:
            for name in [n for n in self._steps if n.startswith("decode.")]:
                self._steps.pop(name).release()
            room = min(max(batch, 2 * self._caches.room), self.plan.batch)
            self._caches.make_room(room, held)

    def prefill(self, prompts: Sequence[Ints]) -> Scores:
        """Commit one prompt per sequence, each on its own, in chunks; scores of each last row."""
        return joined([self.read(row, prompt) for row, prompt in enumerate(prompts)])

    def seat(self) -> int:
        """Room for one more sequence, of as many as the engine was built for."""
        row = len(self._lengths)
        self._make_room(row + 1, row)
        self._lengths = np.append(self._lengths, 0)
        return row

    def leave(self, row: int) -> None:
        """Forget sequence `row`; the last one's keys and values are copied there."""
        last = len(self._lengths) - 1
        if row != last:
            self._caches.copy(last, row)
            self._lengths[row] = self._lengths[last]
        self._lengths = self._lengths[:last].copy()

    def score(
        self,
        tokens: Ints,
        depth: Ints | None = None,
        mask: Bools | None = None,
        counts: Sequence[int] | None = None,
    ) -> Scores:
        """Score N new rows per sequence. See `Session.score`."""
        count = tokens.shape[1]
        if mask is not None and not self._tree:
            raise BackendError("this bundle scores chains only; rebuild it with the pass tree-mask")
        if mask is not None and not self._lengths.all():
            raise BackendError("a tree needs a committed prompt before it; prefill first")
        if mask is not None and self._distances and count > self._widest:
            raise BackendError(f"a tree of {count} rows; this engine scores {self._widest} in one")
        chain = np.tri(count, dtype=np.bool_)
        rows: list[NewRows] = []
        for b, past in enumerate(self._lengths.tolist()):
            steps = np.arange(count) if depth is None else depth[b]
            seen = chain if mask is None else mask[b]
            rows.append(NewRows(tokens[b], past + steps, past, past, seen))
        return self._score(rows)

    def score_slots(self, tokens: Ints, positions: Ints, mask: Bools) -> Scores:
        """Score N new rows per sequence, by explicit slots. See `Session.score_slots`."""
        check_scattered(self._tree, self._distances)
        given = zip(tokens, positions, self._lengths.tolist(), mask, strict=True)
        return self._score([NewRows(ids, at, past, 0, seen) for ids, at, past, seen in given])

    def commit(self, paths: Sequence[Sequence[int]]) -> None:
        """Keep the rows in each path, moved together behind the committed ones."""
        for row, path in enumerate(paths):
            self._caches.keep(row, int(self._lengths[row]), path)
            self._lengths[row] += len(path)

    def truncate(self, lengths: Sequence[int]) -> None:
        """Roll back each sequence to a shorter committed length."""
        self._lengths = rolled_back(self._lengths, lengths)

    def snapshot(self, row: int, start: int, stop: int) -> Snapshot:
        """A copy of committed slots, on the device. See `Session.snapshot`."""
        return self._caches.cut(row, start, stop)

    def restore(self, row: int, kept: Snapshot, count: int) -> None:
        """Commit the positions of a copy. See `Session.restore`."""
        assert isinstance(kept, DeviceSlots), "a snapshot of another kind of session"
        self._caches.put(row, int(self._lengths[row]), kept, count)
        self._lengths[row] += count

    def advance(self, row: int, count: int) -> None:
        """Count positions that a fused step has committed."""
        self._lengths[row] += count

    def head_addresses(self, row: int) -> dict[str, int]:
        """Where the caches of a fused engine's head lie from sequence `row` on, by the names that
        the inputs have in the head's own graph."""
        found = self._caches.addresses(row).items()
        prefix = f"{HEAD}."
        return {n.removeprefix(prefix): at for n, at in found if n.startswith(prefix)}

    def fused_step(self, rows: int) -> ProfileStep:
        """A step of `rows` rows for the whole batch that carries its state on the device."""
        name = f"decode.{rows}"
        extents = extents_of(len(self._lengths), rows, rows, rows)
        if (step := self._steps.get(f"{name} fused")) is None:
            most = extents_of(self._caches.room, rows, rows, rows)
            self._steps[f"{name} fused"] = step = self._made(name, most, True, carrying=True)
        self._take_context(name)
        step.shape(extents, self._caches.addresses())
        return step

    def read(self, row: int, tokens: Ints, show: Show | None = None) -> Scores:
        """Commit tokens behind what the sequence has, in chunks. See `Session.read`."""
        ways = ["shorten the prompt"]
        if self.largest < (self.facts.positions or self.largest + 1):
            ways.append("rebuild with a larger --engine capacity=")
        check_prompt(self, int(self._lengths[row]), len(tokens), *ways)
        step, chunk = self._step("prefill"), self.plan.rows("prefill")
        caches = self._caches.addresses(row)
        for first in range(0, len(tokens), chunk):
            part = np.asarray(tokens[first : first + chunk], np.int64)
            count, past = len(part), int(self._lengths[row])
            step.shape(extents_of(1, count, 1 if self._selects else count, 1), caches)
            chain = np.tri(count, dtype=np.bool_)
            rows = NewRows(part, past + np.arange(count), past, past, chain)
            rows.write(step, 0, 0, count, self._caches.slots)
            if self._selects:
                step.arrays["rows"][0, 0] = count - 1
            step.run()
            if show is not None:
                show(LazyTaps(self._taps, partial(_first, step, count)))
            self._lengths[row] += count
        return copied(self._scores(step, count, wanted=1))  # pyright: ignore[reportPossiblyUnboundVariable]

    def _score(self, rows: list[NewRows]) -> Scores:
        """Score rows of every sequence: in one call, or in several where no profile is as wide,
        whose later rows see the earlier ones in the cache, where a row's slot is its position to
        attention that goes by distance: true of chains, not of trees."""
        count, widest = len(rows[0].tokens), self._widest
        if count <= widest:
            return self._part(rows, 0, count)
        starts = range(0, count, widest)
        parts = [copied(self._part(rows, n, min(n + widest, count))) for n in starts]
        return joined(parts, axis=1)

    def _part(self, rows: list[NewRows], first: int, last: int) -> DeviceScores:
        """One engine call for rows first .. last - 1 of every sequence."""
        wide = next(n for n in self.plan.decoding if n >= last - first)
        step = self._step(f"decode.{wide}")
        step.shape(extents_of(len(rows), wide, wide, wide), self._caches.addresses())
        for place, one in enumerate(rows):
            one.write(step, place, first, last, self._caches.slots)
        if self._selects:
            step.arrays["rows"][:] = np.arange(wide)
        step.run()
        return self._scores(step, last - first, wanted=last - first)

    def _scores(self, step: ProfileStep, count: int, wanted: int) -> DeviceScores:
        """What a step found for the last `wanted` of its `count` rows."""
        turn = step.turn

        def cut(array: Array, port: Port) -> Array:
            rows = wanted if "R" in port.shape else count
            return array[:, :rows][:, -wanted:]

        def read(port: Port) -> Floats:
            if step.turn != turn:
                raise BackendError(STALE)
            rows = wanted if "R" in port.shape else count
            return cut(step.fetch(port.name, rows), port).astype(np.float32, copy=False)

        arrays = step.arrays
        found = {role: cut(arrays[role], p) for role, p in self._outputs.items() if role in arrays}
        logits = partial(read, self._outputs["logits"])
        argmax = found["argmax"] if "argmax" in found else logits().argmax(-1)
        return DeviceScores(
            argmax,
            found.get("topk_ids"),
            found.get("topk_logits"),
            found.get("top_gap"),
            logits,
            LazyTaps(self._taps, read),
        )

    def _step(self, name: str) -> ProfileStep:
        """The profile of that name, with memory for as many sequences as the caches have."""
        if name not in self._steps:
            rows, fixed = self.plan.rows(name), name.startswith("decode.")
            most = extents_of(self._caches.room, rows, rows, rows)
            if not fixed:
                most = extents_of(1, rows, 1 if self._selects else rows, 1)
            self._steps[name] = self._made(name, most, fixed, carrying=False)
        self._take_context(f"{name} fused")
        return self._steps[name]

    def _take_context(self, other: str) -> None:
        """The step of that name is on the same context, and must bind it before it runs again."""
        if other in self._steps:
            self._steps[other].forget()

    def _made(self, name: str, most: Extents, fixed: bool, carrying: bool) -> ProfileStep:
        context = self._device.context(list(self.plan.profiles).index(name), fixed)
        given = self.ports, most, fixed, self._elsewhere, carrying
        return ProfileStep(self._device, context, *given)


def _first(step: ProfileStep, count: int, port: Port) -> Array:
    """The first `count` rows of the first sequence, [count, H]."""
    return step.fetch(port.name, count)[0, :count]
