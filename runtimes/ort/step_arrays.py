"""The arrays of one call shape: what a step reads and writes, bound once to the engine."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime

from graftline.ports import FEATURES, ROUTERS, STREAM, Port, by_role
from graftline.runtimes.session import Bools, Floats, Ints, Scores, Tap

STEP_INTS = ("tokens", "positions", "write_index", "rows")


@dataclass
class StepArrays:
    """The bound arrays of one call shape: B sequences, N rows, R of them with logits."""

    run: Callable[[Any], None]
    """Makes the call, given `binding`."""
    binding: Any
    tokens: Ints
    positions: Ints
    write_index: Ints
    rows: Ints
    mask: Bools | None
    outputs: dict[str, npt.NDArray[Any]]
    filled: int = -1
    """Slots before this one are visible in the last chain of one row; -1: unknown."""
    features: Floats | None = None
    """[B, N, H]: what a draft head's step reads besides tokens."""
    states: Floats | None = None
    """[B, N, H]: what a step of the blocks behind an exit reads in place of tokens."""

    def asked(self, name: str) -> npt.NDArray[Any] | None:
        """An output [B, R, ...] of the rows that were asked for, where the graph gives all N of
        them (no select-rows; taps); None where it has no such output."""
        array = self.outputs.get(name)
        return None if array is None else self.of_rows(array)

    def of_rows(self, array: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """[B, R, ...]: the rows that were asked for, of [B, R or N, ...]."""
        if array.shape[1] == self.rows.shape[1]:
            return array
        rows = self.rows.reshape(*self.rows.shape, *[1] * (array.ndim - 2))
        return np.take_along_axis(array, rows, axis=1)

    def set_features(self, features: Floats | None) -> None:
        """Fill in features [N, H], or [B, N, H], where the step reads any."""
        if features is not None:
            assert self.features is not None, "only a head's graph has features"
            self.features[:] = features

    def set_chain(self, tokens: Ints | Sequence[int], start: int) -> None:
        """Fill in a chain of one sequence: the plain step, so as few array operations as will do.

        The mask of such a call is all true up to slot `filled`, then a triangle.
        """
        count = len(tokens)
        self.tokens[0] = tokens
        self.write_index[0] = start
        if count == 1:
            self.positions[0, 0] = start
        else:
            np.add(_steps(count), start, out=self.positions[0])
        if self.mask is not None:
            if count == 1 and 0 <= self.filled <= start:
                self.mask[0, 0, 0, self.filled : start + 1] = True
            else:
                self.mask_chain(0, start, count)
            self.filled = start

    def mask_chain(self, row: int, start: int, count: int) -> None:
        """Let each of `count` rows of a sequence see all slots before it and its own."""
        assert self.mask is not None
        self.mask[row, 0, :, :start] = True
        self.mask[row, 0, :, start + count :] = False
        if count == 1:
            self.mask[row, 0, 0, start] = True
        else:
            self.mask[row, 0, :, start : start + count] = _triangle(count)


class OutputMemory:
    """What calls of any shape write their outputs to: an answer is valid until the next call, so
    all share one piece of memory for each output."""

    def __init__(self) -> None:
        self._pieces: dict[str | Tap, npt.NDArray[Any]] = {}

    def of(self, name: str | Tap, shape: Sequence[int], dtype: np.dtype[Any]) -> npt.NDArray[Any]:
        """An array of that shape. Where the piece is too small for it, a new one takes its place,
        twice as large; calls that are bound to the old one keep it."""
        size = prod(shape)
        piece = self._pieces.get(name)
        if piece is None or piece.size < size or piece.dtype != dtype:
            known = 0 if piece is None else 2 * piece.size
            self._pieces[name] = piece = np.zeros(max(size, known), dtype)
        return piece[:size].reshape(shape)


class Assembly:
    """Scores of B sequences put together, in `memory`, from calls for some of them of up to N rows.
    What is not put is whatever was there."""

    def __init__(self, memory: OutputMemory, batch: int, rows: int) -> None:
        self._memory, self._shape = memory, (batch, rows)
        self._parts: dict[str | Tap, npt.NDArray[Any]] = {}

    def put(self, row: int, scores: Scores, place: int) -> None:
        """Copy what a call says of its sequence `place`; it is sequence `row` of the whole."""
        for key, part in scores.parts().items():
            if key not in self._parts:
                shape = *self._shape, *part.shape[2:]
                self._parts[key] = self._memory.of(key, shape, part.dtype)
            self._parts[key][row, : part.shape[1]] = part[place]

    def scores(self) -> Scores:
        """What was put together."""
        return Scores.of(self._parts)


def known_by(port: Port) -> str:
    """What an output of a step is known by: its role, and a tap, of which there may be several, by
    its name."""
    return port.name if port.role == "hidden" else port.role


def taps_of(ports: Sequence[Port]) -> dict[Tap, str]:
    """The hidden states that a graph returns, what routers make of them included, and what each is
    known by."""
    roles = FEATURES, "hidden", ROUTERS
    found = [port for role in roles for port in by_role(ports, role, "out")]
    return {Tap.of(port): known_by(port) for port in found}


def step_inputs(
    batch: int, count: int, asked: int, slots: int | None
) -> dict[str, npt.NDArray[Any]]:
    """What one call shape reads besides the caches, by role; a mask over `slots` slots where
    there are trees."""
    made: dict[str, npt.NDArray[Any]] = {
        "tokens": np.zeros((batch, count), np.int64),
        "positions": np.zeros((batch, count), np.int64),
        "write_index": np.zeros(batch, np.int64),
        "rows": np.tile(np.arange(asked, dtype=np.int64), (batch, 1)),
    }
    if slots is not None:
        made["mask"] = np.zeros((batch, 1, count, slots), np.bool_)
    return made


def bind(
    session: onnxruntime.InferenceSession,
    ports: Sequence[Port],
    inputs: Mapping[str, npt.NDArray[Any]],
    caches: Mapping[str, npt.NDArray[Any]],
    memory: OutputMemory,
) -> StepArrays:
    """Bind a step's `inputs`, `caches` (in place, by the name of their output) and its outputs,
    which lie in `memory`."""
    binding: Any = session.io_binding()
    for port in ports:
        if port.direction == "in" and port.state == "" and port.role in inputs:
            binding.bind_ortvalue_input(port.name, _value(inputs[port.role]))
    (batch, count), asked = inputs["tokens"].shape, inputs["rows"].shape[1]
    known: dict[str | int, int] = {"B": batch, "N": count, "R": asked}
    outputs: dict[str, npt.NDArray[Any]] = {}
    for port in ports:
        if port.mirror is not None:
            value = _value(caches[port.name])
            binding.bind_ortvalue_input(port.mirror, value)
            binding.bind_ortvalue_output(port.name, value)
        elif port.direction == "out":
            shape = [d if isinstance(d, int) else known[d] for d in port.shape]
            array = outputs[known_by(port)] = memory.of(port.name, shape, np.dtype(port.dtype))
            binding.bind_ortvalue_output(port.name, _value(array))
    tokens, positions, write_index, rows = (inputs[n] for n in STEP_INTS)
    ints = tokens, positions, write_index, rows
    run = session.run_with_iobinding
    return StepArrays(
        run, binding, *ints, inputs.get("mask"), outputs, features=inputs.get(FEATURES),
        states=inputs.get(STREAM),
    )  # fmt: skip


def _value(array: npt.NDArray[Any]) -> Any:
    return onnxruntime.OrtValue.ortvalue_from_numpy(array)


@cache
def _triangle(count: int) -> Bools:
    return np.tri(count, dtype=np.bool_)


@cache
def _steps(count: int) -> Ints:
    return np.arange(count, dtype=np.int64)
