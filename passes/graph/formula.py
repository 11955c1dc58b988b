"""A mask or bias as a formula of positions: a sub-graph over query and key positions alone.

Every value of a formula is a number or [1 or B, 1 or heads, 1 or N, 1 or S]; its two leaves are the
positions of queries [B, 1, N, 1] and of keys [B, 1, 1, S]. So one formula serves rows in any order,
a tree, and the slots of a cache: it is copied with other values in place of its leaves.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from graftline.evaluate import Array
from graftline.passes.graph.emit import Emit
from graftline.passes.graph.meaning import World, constant, sizes_of

QUERY_AXES, KEY_AXES = (1, 3), (1, 2)
"""Where Unsqueeze puts axes to make a leaf of positions [B, N]; a formula has no other one."""


@dataclass(frozen=True)
class Formula:
    """The value `root` of two leaves, evaluated for any positions and copied into any graph."""

    root: ir.Value
    query: ir.Value
    key: ir.Value

    def at(self, query: Array, key: Array) -> Array:
        """Values [1 or heads, Q, K] for queries at positions [Q] and keys at positions [K]."""
        rows = np.asarray(query, np.int64).reshape(1, 1, -1, 1)
        columns = np.asarray(key, np.int64).reshape(1, 1, 1, -1)
        values = World({self.query: rows, self.key: columns}).value(self.root)
        heads = values.shape[1] if values.ndim == 4 else 1
        return np.broadcast_to(values, (1, heads, rows.size, columns.size))[0]

    def text(self) -> str:
        """Equal for formulas that are written alike, constants included."""
        names = {self.query: "q", self.key: "k"}
        lines: list[str] = []
        for node in nodes_of(self.root, names):
            read = [_name(v, names) for v in node.inputs]
            attributes = sorted((k, str(a.value)) for k, a in node.attributes.items())
            names[node.outputs[0]] = str(len(lines))
            lines.append(f"{node.op_type}{attributes}({','.join(read)})")
        lines.append(_name(self.root, names))
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]


def formula_of(root: ir.Value) -> Formula:
    """The formula that a graph holds at `root`, told by its leaves."""
    leaves = [n for n in nodes_of(root, {}) if n.op_type == "Unsqueeze"]
    found: dict[tuple[int, ...], ir.Value] = {}
    for node in leaves:
        axes = constant(node.inputs[1])
        assert axes is not None, f"{node.name} is no leaf of a formula"
        found[tuple(int(a) for a in axes)] = node.outputs[0]
    nowhere = ir.Value(name="nowhere")
    return Formula(root, found.get(QUERY_AXES, nowhere), found.get(KEY_AXES, nowhere))


def nodes_of(root: ir.Value, leaves: Mapping[ir.Value, object]) -> list[ir.Node]:
    """The nodes between the leaves, or the leaves that Unsqueeze makes, and `root`, in order."""
    done: dict[ir.Node, None] = {}
    stack = [root]
    while stack:
        value = stack[-1]
        node = value.producer()
        if value in leaves or node is None or node in done:
            stack.pop()
            continue
        inputs = () if node.op_type == "Unsqueeze" else node.inputs
        waiting = [v for v in inputs if v is not None and v not in leaves and not _is_done(v, done)]
        if waiting:
            stack.extend(waiting)
            continue
        done[node] = None
        stack.pop()
    return list(done)


def copy_formula(
    formula: Formula,
    emit: Emit,
    query: ir.Value,
    key: ir.Value,
    more: Mapping[ir.Value, ir.Value] | None = None,
) -> ir.Value:
    """Write the formula with `query` and `key` in place of its leaves; returns its new root."""
    made: dict[ir.Value, ir.Value] = {formula.query: query, formula.key: key, **(more or {})}
    for node in nodes_of(formula.root, made):
        inputs = [None if v is None else _here(v, made, emit) for v in node.inputs]
        attributes = {name: a.value for name, a in node.attributes.items()}
        new = emit.op(node.op_type, inputs, **attributes)
        new.type, made[node.outputs[0]] = node.outputs[0].type, new
    return _here(formula.root, made, emit)


def number(emit: Emit, array: Array) -> ir.Value:
    """A constant of a formula, named by what it is."""
    digest = hashlib.sha256(f"{array.dtype}{array.shape}".encode() + array.tobytes())
    return emit.const(f"mask.{digest.hexdigest()[:12]}", array)


def _is_done(value: ir.Value, done: Iterable[ir.Node]) -> bool:
    node = value.producer()
    return node is None or node in done


def _name(value: ir.Value | None, names: Mapping[ir.Value, str]) -> str:
    if value is None or value in names:
        return "" if value is None else names[value]
    tensor = value.const_value
    assert tensor is not None, f"{value.name} is neither a leaf nor a constant of a formula"
    digest = hashlib.sha256(tensor.numpy().tobytes()).hexdigest()[:16]
    return f"{tensor.dtype}{sizes_of(tensor)}{digest}"


def _here(value: ir.Value, made: Mapping[ir.Value, ir.Value], emit: Emit) -> ir.Value:
    """A value of the formula in the graph written to: copied, or the same constant."""
    if value in made:
        return made[value]
    tensor = value.const_value
    assert tensor is not None, f"{value.name} is neither a leaf nor a constant of a formula"
    held = emit.graph.initializers.get(value.name or "")
    return held if held is not None else emit.initializer(value.name or "", tensor)
