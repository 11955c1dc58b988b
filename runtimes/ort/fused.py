"""The fused step on ONNX Runtime's CPU provider, over the caches of an ordinary session."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime

from graftline.errors import BackendError
from graftline.ports import Port, by_role
from graftline.runtimes.fused import Start, check_ranks, first_tree
from graftline.runtimes.fused_block import CachedSession, FusedBlock
from graftline.runtimes.fused_heads import FusedHeads, drafter_of
from graftline.runtimes.ort.calls import MOST_ROWS
from graftline.runtimes.ort.graph import open_graph
from graftline.runtimes.ort.session import OrtSession
from graftline.runtimes.session import Ints
from graftline.runtimes.trees.template import Template

Array = npt.NDArray[Any]
STATE = ("tokens", "parents", "write_index", "ordinal", "seed", "temperature", "min_p")
"""Roles of the inputs that belong to one sequence, besides its caches."""


@dataclass
class _Seat:
    """The bound arrays of one sequence; `carried` pairs an input with its value for the next step.
    """

    binding: Any
    inputs: dict[str, Array]
    outputs: dict[str, Array]
    carried: list[tuple[Array, Array]]


class OrtFusedStep:
    """A fused graph and its state. See `runtimes.fused.FusedStep`.

    The next tree comes from a table of candidates, or from draft heads in the graph: parallel ones,
    or a block with caches of its own, which `head`, the session of its own stage, holds. Caches and
    table are written in place: their inputs and outputs are bound to one buffer, which
    ONNX Runtime's scattering ops then do not copy. A batch is one call per sequence, because
    GroupQueryAttention takes several new rows for one sequence only.
    """

    sizes: Sequence[int] | None = None

    def __init__(
        self,
        graph: Path,
        ports: Sequence[Port],
        host: OrtSession,
        head: CachedSession | None = None,
    ) -> None:
        self._host, self._ports = host, tuple(ports)
        self._engine = open_graph(graph, host.threads)
        self._run_bound = self._engine.run_with_iobinding
        ins = (p for p in self._ports if p.direction == "in" and p.state != "slots")
        self._names = {port.role: port.name for port in ins}
        self.heads = FusedHeads.of(ports)
        self.table = _empty_table(ports)
        """[V, W]: every token's latest candidates, best first, -1 for none; None with heads."""
        self.block = None if head is None else FusedBlock(head, ports)
        self.drafter = drafter_of(ports)
        self._seats: dict[int, _Seat] = {}

    def reset(self, plan: Template) -> None:
        """Forget all sequences; from now on trees are of this shape."""
        if len(plan) > MOST_ROWS:
            raise BackendError(
                f"a tree of {len(plan)} rows; this session scores at most {MOST_ROWS} in a step"
            )
        if self.heads is not None:
            self.heads.check(plan)
        elif self.table is not None:
            check_ranks(plan, self.table.shape[1], "token")
        if self.block is not None:
            self.block.check(plan)
            self.block.reset(len(self._host.lengths))
        self._plan = plan
        self._seats.clear()

    def seat(self, row: int, start: Start) -> None:
        """Begin sequence `row` behind what the host has committed; a table drafts its tree."""
        if self.block is not None:
            self.block.read(row, start.text)
        self._seats[row] = seat = self._bind(row, self._plan)
        drafted = first_tree(self.table, start.root, self._plan)
        how, length = start.sampling, self._host.lengths[row]
        values = *drafted, length, start.ordinal, start.seed, how.temperature, how.min_p
        for name, value in zip(STATE, values, strict=True):
            seat.inputs[self._names[name]][...] = value

    def tree(self, row: int) -> tuple[Ints, Ints]:
        """Tokens and parents [N] that the next step of sequence `row` scores; views."""
        inputs = self._seats[row].inputs
        return inputs[self._names["tokens"]][0], inputs[self._names["parents"]][0]

    def step(self, row: int, room: int) -> list[int]:
        """One engine call for sequence `row`. See `FusedStep.step`."""
        seat = self._seats[row]
        if room < seat.inputs[self._names["tokens"]].shape[1]:
            seat = self._cut(row, room)
        try:
            self._run_bound(seat.binding)
        except Exception as error:  # onnxruntime raises its own types, and plain RuntimeError
            raise BackendError(f"onnxruntime failed in a fused step: {error}") from error
        count = int(seat.outputs["count"][0])
        chosen: list[int] = seat.outputs["accepted"][0, :count].tolist()
        for now, following in seat.carried:
            now[...] = following
        self._host.advance(row, count)
        return chosen

    def _cut(self, row: int, rows: int) -> _Seat:
        """Go on with trees of the first `rows` rows: the engine takes no row past the last
        position, be it padding."""
        old, new = self._seats[row], self._bind(row, self._plan.first(rows))
        for name in (self._names[role] for role in STATE):
            new.inputs[name][...] = old.inputs[name][..., : new.inputs[name].shape[-1]]
        self._seats[row] = new
        return new

    def _bind(self, row: int, plan: Template) -> _Seat:
        """Every input, and of the outputs those that go on or that the host reads: the others,
        logits among them, are then not copied out."""
        extents: dict[str | int, int] = {"B": 1, "N": len(plan), "M": len(plan)}
        names = self._names
        in_place: dict[str, Array] = {**self._host.caches(row)}
        if self.block is not None:
            in_place |= self.block.caches(row)
        if self.table is not None:
            in_place[names["table"]] = self.table
        given = {names[part]: v for part, v in plan.columns.items() if part in names}
        binding = self._engine.io_binding()
        inputs: dict[str, Array] = {}
        outputs: dict[str, Array] = {}
        carried: list[tuple[Array, Array]] = []
        for port in self._ports:
            shape = [d if isinstance(d, int) else extents.get(d, 0) for d in port.shape]
            if port.direction == "in":
                known = in_place.get(port.name, given.get(port.name))
                inputs[port.name] = np.zeros(shape, port.dtype) if known is None else known
                binding.bind_ortvalue_input(port.name, _value(inputs[port.name]))
            elif port.mirror in in_place:
                binding.bind_ortvalue_output(port.name, _value(in_place[port.mirror]))
            elif port.mirror is not None or port.role in ("accepted", "count"):
                array = outputs[port.role] = np.zeros(shape, port.dtype)
                binding.bind_ortvalue_output(port.name, _value(array))
                if port.mirror is not None:
                    carried.append((inputs[port.mirror], array))
        return _Seat(binding, inputs, outputs, carried)


def _empty_table(ports: Sequence[Port]) -> npt.NDArray[np.int32] | None:
    found = by_role(ports, "table", "in")
    return np.full([int(d) for d in found[0].shape], -1, np.int32) if found else None


def _value(array: Array) -> Any:
    return onnxruntime.OrtValue.ortvalue_from_numpy(array)
