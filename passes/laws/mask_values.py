"""What the attentions of a canonical graph see, and how they turn heads, told by evaluating it
without weights: for any positions, places in a cache and trees."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from graftline.evaluate import Array
from graftline.passes.graph.meaning import World
from graftline.passes.graph.ports import cache_of, input_of, value_of
from graftline.ports import read_ports, slot_ports


def mask_at(model: ir.Model, node: ir.Node, positions: Array) -> Array:
    """The additive bias [heads or 1, P, P] between ascending positions, of a graph with or without
    a cache: fed as one chain from slot 0."""
    count = len(positions)
    if cache_of(model) is not None:
        chain = np.tri(count, dtype=np.bool_)
        start = np.zeros(1, np.int64)
        return cached_mask(model, node, positions[None], start, count, chain[None])[0]
    mask = node.inputs[3] if len(node.inputs) > 3 else None
    values = np.zeros((1, 1, count, count), np.float32)
    if mask is not None:
        values = _world(model, positions[None]).value(mask)
    bias = _additive(values, 1, count, count)[0]
    if node.attributes.get_int("is_causal", 0):
        bias = np.where(np.tri(count, dtype=np.bool_), bias, -np.inf)
    return bias


def cached_mask(
    model: ir.Model, node: ir.Node, positions: Array, past: Array, slots: int, port: Array
) -> Array:
    """The additive bias [B, heads or 1, N, S] of rows at positions [B, N], written to slots
    past .. past + N - 1; `port` [B, N, S] is what a tree lets them see."""
    mask = node.inputs[3] if len(node.inputs) > 3 else None
    assert mask is not None, "an attention over a cache has a mask"
    world = _world(model, positions)
    for role, row in (("write_index", past.astype(np.int64)), ("mask", port[:, None])):
        if (value := input_of(model, role)) is not None:
            world.known[value] = row
    sizes = {"B": len(past), "S": slots}
    world.shapes = {
        value_of(model, p): tuple(d if isinstance(d, int) else sizes[d] for d in p.shape)
        for p in slot_ports(read_ports(model), "in")
    }
    batch, rows = positions.shape
    return _additive(world.value(mask), batch, rows, slots)


def _world(model: ir.Model, positions: Array) -> World:
    """Positions [B, N]; ids do not count."""
    known: dict[ir.Value, Array] = {}
    for role, row in (("tokens", np.zeros_like(positions)), ("positions", positions)):
        value = input_of(model, role)
        assert value is not None, f"a canonical graph has the input '{role}'"
        known[value] = row.astype(np.int64)
    return World(known)


def _additive(values: Array, batch: int, rows: int, columns: int) -> Array:
    if values.dtype == np.bool_:
        values = np.where(values, np.float32(0), np.float32(-np.inf))
    values = values.reshape((1,) * (4 - values.ndim) + values.shape)
    return np.broadcast_to(values, (batch, values.shape[1], rows, columns))


def mask_key(node: ir.Node) -> tuple[object, ...]:
    """Equal for attentions that read the same mask."""
    mask = node.inputs[3] if len(node.inputs) > 3 else None
    return (id(mask) if mask is not None else None, node.attributes.get_int("is_causal", 0))


@dataclass(frozen=True)
class Way:
    """How an operand of an attention comes from heads: turned, scaled by position, written."""

    heads: ir.Value
    out: ir.Value
    nodes: tuple[ir.Node, ...]

    @classmethod
    def of(cls, node: ir.Node, operand: int) -> Way:
        """From the heads before the rotary embedding to the rows that enter the cache."""
        value = node.inputs[operand]
        assert value is not None
        maker = value.producer()
        if maker is not None and maker.op_type == "TensorScatter":
            value = maker.inputs[1]
            assert value is not None
        out, nodes = value, list[ir.Node]()
        for step in _steps(value):
            nodes.append(step)
            assert step.inputs[0] is not None
            value = step.inputs[0]
        return cls(value, out, tuple(nodes))

    @property
    def rows(self) -> int:
        """P of the tables it reads; 0 where it reads none."""
        tables = [t for n in self.nodes for t in _tables(n)]
        return min((len(t) for t in tables), default=0)

    @property
    def size(self) -> int:
        """D: numbers in a head."""
        assert self.heads.shape is not None
        size = self.heads.shape[-1]
        assert isinstance(size, int)
        return size

    def key(self) -> tuple[object, ...]:
        """Equal for ways that do the same."""
        parts: list[object] = [self.size if self.nodes else 0]
        for node in self.nodes:
            parts += [node.op_type, *(id(v) for v in node.inputs[1:])]
            parts += sorted((k, str(a.value)) for k, a in node.attributes.items())
        return tuple(parts)

    def of_heads(self, model: ir.Model, x: Array) -> Array:
        """What becomes of heads [P, D] at positions 0 .. P-1."""
        world = _world(model, np.arange(len(x))[None])
        world.known[self.heads] = x[None, None].astype(
            (self.heads.dtype or ir.DataType.FLOAT).numpy()
        )
        return world.value(self.out)[0, 0]


def _steps(value: ir.Value) -> Iterator[ir.Node]:
    while (node := value.producer()) is not None:
        source = node.inputs[0]
        scaled = node.op_type == "Mul" and bool(_tables(node))
        if source is None or not (node.op_type == "RotaryEmbedding" or scaled):
            return
        yield node
        value = source


def _tables(node: ir.Node) -> list[Array]:
    """The tables by position that a node reads."""
    if node.op_type == "RotaryEmbedding":
        held = [v.const_value for v in node.inputs[1:3] if v is not None]
        return [t.numpy() for t in held if t is not None]
    axes = node.inputs[1].producer() if node.inputs[1] is not None else None
    read = axes.inputs[0] if axes is not None and axes.op_type == "Unsqueeze" else None
    gather = read.producer() if read is not None else None
    table = gather.inputs[0] if gather is not None and gather.op_type == "Gather" else None
    tensor = table.const_value if table is not None else None
    return [tensor.numpy()] if tensor is not None else []
