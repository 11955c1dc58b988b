"""Kinds of mask: causal, a window, linear biases by their values, or the formula itself."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import onnx_ir as ir

from graftline.evaluate import Array
from graftline.passes.graph.emit import Emit
from graftline.passes.graph.formula import Formula, copy_formula, nodes_of, number
from graftline.passes.graph.meaning import constant
from graftline.passes.graph.mismatch import Mismatch
from graftline.passes.graph.seen import HIDDEN, Seen

_FILLER = -1e30


@dataclass(frozen=True)
class RawMask:
    """Values [heads or 1, Q, K] that the raw graph adds between queries and keys at positions."""

    query: Array
    key: Array
    values: Array
    length: int
    whole: bool
    """Evaluated in the raw graph itself, at this length; else by its lifted formula, beyond."""


@dataclass(frozen=True)
class Mask:
    """What may be attended to: causal; within `size` positions; biased by `slopes` per head; or
    what `formula` says."""

    kind: Literal["causal", "window", "alibi", "formula"]
    size: int = 0
    slopes: tuple[float, ...] = ()
    formula: Formula | None = None
    positions: int = 0
    """How many positions the formula's tables hold; 0: it has none."""
    raw: tuple[RawMask, ...] = field(default=(), compare=False)

    def text(self) -> str:
        """The metadata every Attention node carries."""
        row: dict[str, object] = {"kind": self.kind}
        if self.kind == "window":
            row["size"] = self.size
        if self.kind == "alibi":
            row["slopes"] = list(self.slopes)
        if self.formula is not None:
            row["formula"] = self.formula.text()
        return json.dumps(row)


def classify(formula: Formula, query: Array, key: Array, where: str) -> Mask | Mismatch:
    """The fast kinds where the values are exactly those at all points; else the formula. What hides
    nothing, sees later positions, or has rows that see nothing is no mask of a decoder."""
    seen = Seen.of(formula.at(query, key))
    distance = query[:, None] - key
    if seen.allowed.all():
        return Mismatch(
            where,
            "the mask hides nothing: either this is not a causal decoder, or a boolean mask is "
            "added to the scores as 0 and 1 (export with a float mask or sdpa attention)",
        )
    if seen.allowed[:, distance < 0].any():
        return Mismatch(
            where,
            "the mask lets a row see later positions (bidirectional attention, or a prefix that "
            "sees itself whole): such a model cannot be decoded with a cache",
        )
    if not seen.allowed.any(axis=-1).all():
        return Mismatch(where, "the mask has rows that see nothing, not even themselves")
    for found in (Mask("causal"), _alibi(formula), _window(formula, query)):
        if found is not None and Seen.of(_values(found, query, key)).equals(seen):
            return found
    lowered = _as_mask(formula, query, key)
    if lowered is None:
        return Mismatch(where, "a mask computes with the numbers that hide")
    return Mask("formula", formula=lowered)


def _alibi(formula: Formula) -> Mask | None:
    """Per head, what one key position more adds, read off the first 13 positions."""
    near = np.arange(13)
    values = formula.at(near, near)
    if values.dtype == np.bool_ or not Seen.of(values).allowed[:, -1, 0].all():
        return None
    wide = values[:, -1].astype(np.float64)
    slopes = (wide[:, -1] - wide[:, 0]) / 12
    return Mask("alibi", slopes=tuple(float(np.float32(s)) for s in slopes))


def _window(formula: Formula, query: Array) -> Mask | None:
    """As many positions as the last row sees, found by bisection."""
    last = int(query[-1])
    low, high = 0, last
    while low < high:
        middle = (low + high) // 2
        at = Seen.of(formula.at(np.asarray([last]), np.asarray([middle, last])))
        low, high = (low, middle) if at.allowed[:, 0, 0].any() else (middle + 1, high)
    return Mask("window", last - low + 1)


def _values(mask: Mask, query: Array, key: Array) -> Array:
    distance = query[:, None] - key
    past = distance >= 0
    if mask.kind == "window":
        return (past & (distance < mask.size))[None]
    slopes = np.asarray(mask.slopes or (0.0,))[:, None, None]
    return np.where(past, slopes * key.astype(np.float64), -np.inf)


def _as_mask(formula: Formula, query: Array, key: Array) -> Formula | None:
    """bool where it only hides, else fp32; None where it is another one with minus infinity for the
    numbers that hide."""
    values = formula.at(query, key)
    if values.dtype == np.bool_:
        return formula
    emit = Emit(ir.Graph([], [], nodes=[], name="formula"), "canonicalize")
    leaves = ir.Value(name="query"), ir.Value(name="key")
    root = copy_formula(formula, emit, *leaves)
    seen = Seen.of(values)
    if (values[np.broadcast_to(seen.allowed, values.shape)] == 0).all():
        return Formula(_hiding(emit, root, values.dtype), *leaves)
    _lower_fillers(emit, root)
    if values.dtype != np.float32:
        root = emit.op("Cast", [root], to=ir.DataType.FLOAT)
    lowered = Formula(root, *leaves)
    return lowered if Seen.of(lowered.at(query, key)).equals(seen) else None


def _hiding(emit: Emit, root: ir.Value, dtype: np.dtype[np.generic]) -> ir.Value:
    """What is true where a bias of 0 or very low numbers is 0."""
    node = root.producer()
    if node is not None and node.op_type == "Where":
        chosen = [constant(v) for v in node.inputs[1:]]
        if all(a is not None and a.size == 1 for a in chosen):
            zero, low = (float(a.reshape(())) for a in chosen if a is not None)
            if zero == 0 and low < HIDDEN and node.inputs[0] is not None:
                return node.inputs[0]
    return emit.op("Greater", [root, number(emit, np.asarray(HIDDEN, dtype))])


def _lower_fillers(emit: Emit, root: ir.Value) -> None:
    """Minus infinity for the very low numbers that Where hides with: fp16 has no others."""
    for node in nodes_of(root, {}):
        for place, value in enumerate(node.inputs if node.op_type == "Where" else ()):
            array = constant(value)
            if array is None or array.size != 1 or array.dtype.kind != "f":
                continue
            if float(array.reshape(())) < _FILLER:
                low = np.asarray(-np.inf, array.dtype).reshape(array.shape)
                node.replace_input_with(place, number(emit, low))
