"""The fused step on TensorRT: one call per step for the whole batch, its state on the device."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from graftline.errors import BackendError
from graftline.ports import Port
from graftline.runtimes.fused import Start, check_ranks, first_tree
from graftline.runtimes.fused_block import BlockSession, check_chain, read_text
from graftline.runtimes.fused_heads import drafter_of
from graftline.runtimes.sampling import Sampling
from graftline.runtimes.trees.template import Template
from graftline.runtimes.trt.device import Array, Device

if TYPE_CHECKING:
    from graftline.runtimes.trt.session import TrtSession
    from graftline.runtimes.trt.step import ProfileStep

IDLE = Start(0, 0, 0, Sampling())


class DraftTable:
    """Every token's latest candidates [V, W] on the device, best first; -1 where there is none."""

    def __init__(self, device: Device, port: Port) -> None:
        shape = [int(extent) for extent in port.shape]
        dtype = np.dtype(port.dtype)
        size = int(np.prod(shape)) * dtype.itemsize
        self._device, self.address = device, device.allocate(size)
        self._twin: Array = device.pinned(size).view(dtype).reshape(shape)
        self._twin[:] = -1
        self.width = shape[-1]
        """Candidates of a token."""
        device.upload(self.address, self._twin)
        device.synchronize()

    def read(self) -> Array:
        """What it holds now; valid until the next call."""
        self._device.download(self._twin, self.address)
        self._device.synchronize()
        return self._twin


class TrtFusedStep:
    """A fused engine's step over the caches of its session. See `runtimes.fused.FusedStep`.

    `step` is asked for one sequence after another; the first asked runs the engine for all, and the
    others find their answer waiting. A sequence whose answer nobody fetched has finished: it rides
    along at the front of its own caches and adds nothing.
    """

    def __init__(self, session: TrtSession, head: BlockSession | None = None) -> None:
        """`head`: over the engine's caches of a draft block, the session of its own stage, which
        reads prompts into them."""
        if not session.steps_fused:
            raise BackendError("this engine has no fused step; rebuild with --step fused")
        assert head is not None or not session.depth, "a draft block reads prompts by its own stage"
        self._session, self._head, self.drafter = session, head, drafter_of(session.ports)
        self.sizes: Sequence[int] | None = tuple(session.plan.decoding)
        self._answers: dict[int, list[int]] = {}

    def reset(self, plan: Template) -> None:
        """Forget all sequences; from now on trees are of this shape."""
        session, rows = self._session, len(plan)
        if rows not in session.plan.decoding:
            raise session.plan.refusal(
                f"a tree of {rows} rows, and steps of {', '.join(map(str, session.plan.decoding))} "
                f"were built; choose --engine rows={rows}", rebuild=True
            )  # fmt: skip
        if session.heads is not None:
            session.heads.check(plan)
        elif session.table is not None:
            check_ranks(plan, session.table.width, "token")
        elif session.depth:
            check_chain(plan, session.depth)
        self._plan = plan
        self._step: ProfileStep = session.fused_step(rows)
        for role, column in plan.columns.items():
            if role in self._step.arrays:
                self._step.put(role, column)
        self._answers.clear()
        self._seated: set[int] = set()

    def seat(self, row: int, start: Start) -> None:
        """Begin sequence `row` behind what the session has committed; a table drafts its tree."""
        table = self._session.table
        known = None if table is None else table.read()
        tokens, parents = first_tree(known, start.root, self._plan)
        if self._head is not None:
            read_text(self._head, row, start.text)
        self._put(row, start, tokens, parents, int(self._session.lengths[row]))
        self._seated.add(row)

    def step(self, row: int, room: int) -> list[int]:
        """The tokens that a step adds to sequence `row`. See `FusedStep.step`."""
        if row not in self._answers:
            self._run(row, room)
        return self._answers.pop(row)

    def _run(self, asked: int, room: int) -> None:
        """One call for the batch; `room` is what is left to sequence `asked`, and what is left to
        the others follows from their lengths."""
        session, rows = self._session, len(self._plan)
        self._seated -= self._answers.keys()
        left = session.capacity - session.lengths
        left[asked] = room
        for row in range(len(left)):
            if row not in self._seated:
                nothing = np.full((1, rows), -1, np.int64)
                self._put(row, IDLE, np.zeros((1, rows), np.int64), nothing, 0)
            elif left[row] < rows:
                self._step.put("parents", -1, row, int(left[row]))
        self._step.run()
        counts = self._step.arrays["count"]
        accepted = self._step.arrays["accepted"]
        self._answers = {
            row: accepted[row, : counts[row]].tolist() for row in sorted(self._seated)
        }
        for row in self._seated:
            session.advance(row, int(counts[row]))

    def _put(self, row: int, start: Start, tokens: Array, parents: Array, length: int) -> None:
        values = {
            "tokens": tokens[0],
            "parents": parents[0],
            "write_index": length,
            "last.count": 0,
            "ordinal": start.ordinal,
            "seed": start.seed,
            "temperature": start.sampling.temperature,
            "min_p": start.sampling.min_p,
        }
        for name, value in values.items():
            if name in self._step.arrays:
                self._step.put(name, value, row)
