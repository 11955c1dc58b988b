"""The lengths at which weight-free values are compared: around every constant above them.

A value that depends on sizes and positions changes its form only where it meets one of the numbers
it is made of: a window, a chunk, a clip, the length of a table. Around each such c it is looked at
at c - 1, c, c + 1 and 2c + 1 positions.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from graftline.errors import CannotEvaluate, DoesNotRun
from graftline.evaluate import Array
from graftline.passes.canonical.shapes import Measures
from graftline.passes.graph.meaning import World, label_value, sizes_of
from graftline.passes.graph.seen import largest, rounding

LONGEST = 1 << 20
"""Constants above it are fillers: no cache holds so many positions."""
SQUARE = 1 << 18
"""Elements [heads, N, N] up to which values of two positions are evaluated at every length."""
HIDES = -9e3
"""A floating number as low as this stands for minus infinity in scores, and for no position."""
_SHORT = (1, 2, 3, 5, 13)
_FEW = 64
_KEPT = 1 << 16


def above(sources: Iterable[ir.Value]) -> Iterator[ir.Value]:
    """The sources and everything they are made of; what only gives its shape is not followed."""
    seen, todo = set[ir.Value](), list(sources)
    while todo:
        value = todo.pop()
        if value in seen:
            continue
        seen.add(value)
        yield value
        node = value.producer()
        if node is not None and node.op_type not in ("Shape", "Size"):
            todo.extend(v for v in node.inputs if v is not None)


def constants_above(sources: Iterable[ir.Value]) -> set[int]:
    """Sizes of the tables above the sources, and the numbers in their scalars and short lists."""
    found: set[int] = set()
    for value in above(sources):
        tensor = value.const_value
        if tensor is None:
            continue
        if tensor.size > 1:
            found.update(sizes_of(tensor))
        if tensor.size <= _FEW and tensor.dtype != ir.DataType.BOOL:
            near = _near(tensor.numpy())
            found.update(int(n) for n in (*np.floor(near), *np.ceil(near)))
    return {n for n in found if 0 < n <= LONGEST}


def _near(array: Array) -> Array:
    """The numbers that could be lengths; the largest of a float type is none: it hides."""
    numbers = array.astype(np.float64).reshape(-1)
    if rounding(array.dtype):
        numbers = numbers[numbers > HIDES]
    numbers = np.abs(numbers)
    limit = min(float(LONGEST), largest(array.dtype) * (1 - rounding(array.dtype)))
    return numbers[np.isfinite(numbers) & (numbers <= limit)]


def lengths_around(constants: Iterable[int], most: int = 0) -> list[int]:
    """Lengths around each constant, ascending; none above `most`, where that is not 0."""
    around = {n for c in constants for n in (c - 1, c, c + 1, 2 * c + 1) if n > 0}
    return sorted(n for n in around.union(_SHORT) if not most or n <= most)


@dataclass
class Lengths:
    """Worlds of one graph at these lengths, and the values of rows (not squares) in all of them."""

    measures: Measures
    each: list[int]
    worlds: dict[int, World] = field(default_factory=dict[int, World])
    squares: dict[ir.Value, bool] = field(default_factory=dict[ir.Value, bool])
    stops: int | None = None
    """The length from which on the graph does not run: it holds a table of one row less."""

    def world(self, length: int) -> World:
        """Two rows of a batch where that costs nothing, positions from zero."""
        if length in self.worlds:
            return self.worlds[length]
        made = self.measures.world(self.batch(length), length)
        if length <= _KEPT:
            self.worlds[length] = made
        return made

    def batch(self, length: int) -> int:
        """Rows of the batch in the world of that length."""
        return 2 if length <= _FEW else 1

    def rows(self, value: ir.Value, limit: int = SQUARE) -> dict[int, Array]:
        """Values at every length that the graph can run; N x N of them up to `limit` elements.

        Raises CannotEvaluate.
        """
        found: dict[int, Array] = {}
        square = self.is_square(value)
        for length in self.each:
            if square and length * length > limit:
                raise CannotEvaluate(
                    f"N x N values behind it would have to be computed at {length} positions",
                    [label_value(value)],
                )
            if self.stops is not None and length >= self.stops:
                break
            try:
                found[length] = self.world(length).value(value)
            except DoesNotRun:
                if len(found) < 2:
                    raise
                self.stops = length
        return found

    def is_square(self, value: ir.Value) -> bool:
        """Whether the value, or one it is made of, has a row and a column per position."""
        if value not in self.squares:
            self.squares[value] = any(
                (self.measures.dims(v) or []).count("N") > 1 for v in above([value])
            )
        return self.squares[value]


def marked_ids(sources: Iterable[ir.Value]) -> set[int]:
    """Ids that a long list above the sources, read by ids, treats differently from its first."""
    found: set[int] = set()
    for value in above(sources):
        tensor = value.const_value
        if tensor is not None and len(tensor.shape) == 1 and tensor.size > _FEW:
            array = tensor.numpy()
            found.update(int(i) for i in np.flatnonzero(array != array[0])[:_FEW])
    return found


def steady(value: ir.Value, measures: Measures) -> bool:
    """Whether a weight-free number is the same at every length. Raises CannotEvaluate."""
    if value.const_value is not None:
        return True
    each = lengths_around(constants_above([value]), measures.most)
    found = [measures.world(2 if n <= _FEW else 1, n).value(value).reshape(-1) for n in each]
    return all(np.array_equal(f, found[0]) for f in found)


def ids_held(measures: Measures) -> int:
    """The fewest rows of all tables that are read by the token ids: there are no larger ids."""
    rows = LONGEST
    for node in measures.graph:
        if node.op_type == "Gather" and _uncast(node.inputs[1]) is measures.tokens:
            shape = measures.each[0].of(node.inputs[0])
            if shape is not None:
                rows = min(rows, shape[node.attributes.get_int("axis", 0) or 0])
    return rows


def _uncast(value: ir.Value | None) -> ir.Value | None:
    node = value.producer() if value is not None else None
    while node is not None and node.op_type in ("Cast", "Identity"):
        value = node.inputs[0]
        node = value.producer() if value is not None else None
    return value


def token_ids(constants: Iterable[int], held: int, batch: int, length: int, seed: int) -> Array:
    """Random ids [batch, length] below `held`, drawn from the constants tokens are compared with,
    0, 1 and 2."""
    pool = np.asarray(sorted(n for n in {0, 1, 2, *constants} if n < held), np.int64)
    return np.random.default_rng(seed).choice(pool, (batch, length))
