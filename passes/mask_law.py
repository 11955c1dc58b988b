"""The law `masks`: every attention sees what the graph before lets it see, and turns its heads as
there, at positions around every constant; no weight is read and no feed is needed.

After canonicalize the raw graph's own values are compared, as they were evaluated when its masks
and rotary embeddings were read. After kv-cache and tree-mask the graph before is evaluated beside
the graph after: rows at several places of a cache, and a tree.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from graftline.errors import DoesNotRun, LawBroken
from graftline.evaluate import Array
from graftline.law import Evidence
from graftline.passes.canonical_attention import RAW_KEY, RawAttention
from graftline.passes.canonical_lengths import constants_above, lengths_around
from graftline.passes.canonical_rotary import probe
from graftline.passes.emit import find_input
from graftline.passes.graft import Graft
from graftline.passes.meaning import World, label
from graftline.passes.seen import HIDDEN, Seen, rounding

LAW = "masks"
_FIRST, _NEAR = 24, 2
_ROWS, _SPARE = 3, 2
_TURNED = 2e-5
"""A turned head may differ by so much of its largest number: sine and cosine of another library."""
_PARENTS = (-1, 0, 0, 1, 1, 2)


def masks(graft: Graft, before: ir.Model, after: ir.Model) -> Evidence:
    """Masks and rotary embeddings after are those before, told by their values."""
    if find_input(after.graph, "write_index") is None:
        return _against_raw(graft, after)
    return _against_host(graft, before, after)


def attentions(model: ir.Model) -> list[ir.Node]:
    """The attention nodes of a canonical graph, in order."""
    return [n for n in model.graph if n.op_type == "Attention"]


# canonical against raw


def _against_raw(graft: Graft, after: ir.Model) -> Evidence:
    done, seen = Compared(), set[tuple[object, ...]]()
    for node in attentions(after):
        raw = node.meta.get(RAW_KEY)
        if not isinstance(raw, RawAttention):
            raise LawBroken(graft.name(), LAW, label(node), "nobody noted what the raw graph says")
        done.attentions += 1
        key = (_mask_key(node), id(raw.masks))
        if key not in seen:
            seen.add(key)
            done.masks += 1
            for part in raw.masks:
                positions = np.unique(np.concatenate([part.query, part.key]))
                with _running(graft, node):
                    values = mask_at(after, node, positions)
                rows, columns = (np.searchsorted(positions, p) for p in (part.query, part.key))
                found = values[:, rows][:, :, columns]
                _compare(graft, node, found, part.values, part.query, part.key)
                if part.whole:
                    done.whole = max(done.whole, part.length)
                done.longest = max(done.longest, part.length)
        for operand, turn in ((0, raw.query), (1, raw.key)):
            way = Way.of(node, operand)
            key = (way.key(), id(turn))
            if key in seen:
                continue
            seen.add(key)
            expected = None if turn is None else turn.turned
            size = way.size
            rows = len(expected) if expected is not None else way.rows
            if rows:
                x = probe(rows, size, 0)
                with _running(graft, node):
                    found = way.of_heads(after, x)
                _same_heads(graft, node, found, x if expected is None else expected)
                done.rotary = max(done.rotary, rows)
    return Evidence(done.text("the raw graph's"))


# cached against canonical, and with a tree against without


def _against_host(graft: Graft, before: ir.Model, after: ir.Model) -> Evidence:
    done, seen = Compared(), set[tuple[object, ...]]()
    hosts, news = attentions(before), attentions(after)
    if len(hosts) != len(news):
        raise LawBroken(
            graft.name(), LAW, "attention", f"{len(news)} attentions, the host has {len(hosts)}"
        )
    for host, node in zip(hosts, news, strict=True):
        done.attentions += 1
        key = (_mask_key(host), _mask_key(node))
        if key not in seen:
            seen.add(key)
            done.masks += 1
            for total in _totals(host, node):
                _at_length(graft, before, after, host, node, total)
                done.longest = max(done.longest, total)
        for operand in (0, 1):
            was, now = Way.of(host, operand), Way.of(node, operand)
            key = (was.key(), now.key())
            rows = was.rows or now.rows
            if key in seen or not rows:
                continue
            seen.add(key)
            x = probe(rows, was.size, 0)
            with _running(graft, node):
                found = now.of_heads(after, x)
            _same_heads(graft, node, found, was.of_heads(before, x))
            done.rotary = max(done.rotary, rows)
    return Evidence(done.text("the host's"))


def _totals(host: ir.Node, node: ir.Node) -> list[int]:
    """Positions in use: around every constant above either mask."""
    return [n for n in lengths_around(_constants(host, node)) if n > 1]


def _constants(host: ir.Node, node: ir.Node) -> set[int]:
    given = [n.inputs[3] if len(n.inputs) > 3 else None for n in (host, node)]
    return constants_above(v for v in given if v is not None)


def _points(total: int, constants: set[int]) -> Array:
    """Positions below `total` at which keys are looked at."""
    near = {total - c + s for c in constants for s in range(-_NEAR, _NEAR + 1)}
    near |= {c + s for c in constants for s in range(-_NEAR, _NEAR + 1)}
    near |= set(range(_FIRST)) | set(range(total - _FIRST, total))
    return np.asarray(sorted(p for p in near if 0 <= p < total), np.int64)


def _at_length(
    graft: Graft, before: ir.Model, after: ir.Model, host: ir.Node, node: ir.Node, total: int
) -> None:
    """New rows that end at `total` positions see what the host's rows there see, each slot of
    the cache by the position it holds; with a tree, along its branches."""
    constants = _constants(host, node)
    parents = _PARENTS if find_input(after.graph, "mask") is not None else ()
    depth, reach = _tree(parents) if parents else _chain(min(_ROWS, total))
    rows, past = len(depth), max(total - 1 - int(depth.max()), 0)
    slots = past + rows + _SPARE
    port = np.zeros((rows, slots), np.bool_)
    port[:, :past] = True
    port[:, past : past + rows] = reach
    with _running(graft, node):
        found = _cached(after, node, past + depth, past, slots, port)
    kept = np.concatenate([_points(past, constants), np.arange(past, slots)])
    held = np.concatenate([np.arange(past), past + depth, np.full(_SPARE, -1)])
    positions = np.unique(np.concatenate([held[kept], past + depth]))
    positions = positions[positions >= 0]
    values = mask_at(before, host, positions)
    index = np.searchsorted(positions, np.maximum(held[kept], 0))
    expected = values[:, np.searchsorted(positions, past + depth)][:, :, index]
    expected = np.where(port[:, kept], expected, -np.inf)
    _compare(graft, node, found[:, :, kept], expected, past + depth, held[kept])


def _chain(rows: int) -> tuple[Array, Array]:
    return np.arange(rows), np.tri(rows, dtype=np.bool_)


def _tree(parents: tuple[int, ...]) -> tuple[Array, Array]:
    """Depths [N], and [N, N] true where a node is another or above it."""
    count = len(parents)
    depth, reach = np.zeros(count, np.int64), np.eye(count, dtype=np.bool_)
    for node, parent in enumerate(parents):
        if parent >= 0:
            depth[node] = depth[parent] + 1
            reach[node] |= reach[parent]
    return depth, reach


# evaluating one graph


def mask_at(model: ir.Model, node: ir.Node, positions: Array) -> Array:
    """The additive bias [heads or 1, P, P] between ascending positions, of a graph with or without
    a cache: fed as one chain from slot 0."""
    count = len(positions)
    if find_input(model.graph, "write_index") is not None:
        chain = np.tri(count, dtype=np.bool_)
        return _cached(model, node, positions, 0, count, chain)
    mask = node.inputs[3] if len(node.inputs) > 3 else None
    values = np.zeros((1, 1, count, count), np.float32)
    if mask is not None:
        values = _world(model, positions).value(mask)
    bias = _additive(values, count, count)
    if node.attributes.get_int("is_causal", 0):
        bias = np.where(np.tri(count, dtype=np.bool_), bias, -np.inf)
    return bias


def _cached(
    model: ir.Model, node: ir.Node, positions: Array, past: int, slots: int, port: Array
) -> Array:
    """The additive bias [heads or 1, N, S] of rows written to slots past .. past + N - 1."""
    mask = node.inputs[3] if len(node.inputs) > 3 else None
    assert mask is not None, "an attention over a cache has a mask"
    world = _world(model, positions)
    shapes: dict[ir.Value, tuple[int, ...] | None] = {}
    for value in model.graph.inputs:
        if value.name == "write_index":
            world.known[value] = np.asarray([past], np.int64)
        elif value.name == "mask":
            world.known[value] = port[None, None]
        elif value.shape is not None and len(value.shape) == 4:
            sizes = {"B": 1, "S": slots}
            dims = [d if isinstance(d, int) else d.value for d in value.shape]
            shapes[value] = tuple(d if isinstance(d, int) else sizes[d or ""] for d in dims)
    world.shapes = shapes
    return _additive(world.value(mask), len(positions), slots)


def _world(model: ir.Model, positions: Array) -> World:
    known: dict[ir.Value, Array] = {}
    for name, row in (("tokens", np.zeros_like(positions)), ("positions", positions)):
        value = find_input(model.graph, name)
        assert value is not None, f"a canonical graph has the input '{name}'"
        known[value] = row[None].astype(np.int64)
    return World(known)


def _additive(values: Array, rows: int, columns: int) -> Array:
    if values.dtype == np.bool_:
        values = np.where(values, np.float32(0), np.float32(-np.inf))
    values = values.reshape((1,) * (4 - values.ndim) + values.shape)
    return np.broadcast_to(values, (1, values.shape[1], rows, columns))[0]


def _mask_key(node: ir.Node) -> tuple[object, ...]:
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
        world = _world(model, np.arange(len(x)))
        world.known[self.heads] = x[None, None].astype(
            (self.heads.dtype or ir.DataType.FLOAT).numpy()
        )
        return world.value(self.out)[0, 0].astype(np.float64)


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


# comparing


@contextmanager
def _running(graft: Graft, node: ir.Node) -> Generator[None]:
    """A graph that does not run where the one before does breaks the law."""
    try:
        yield
    except DoesNotRun as error:
        raise LawBroken(graft.name(), LAW, label(node), str(error)) from error


def _compare(
    graft: Graft, node: ir.Node, found: Array, expected: Array, query: Array, key: Array
) -> None:
    got, want = Seen.of(found), Seen.of(expected)
    if got.equals(want):
        return
    gap = np.abs(got.bias - want.bias)
    head, row, column = (int(i) for i in np.unravel_index(int(gap.argmax()), gap.shape))
    was, now = (
        "hidden" if b <= HIDDEN else f"seen with {b:.4g}"
        for b in (_at(want, head, row, column), _at(got, head, row, column))
    )
    place = f"head {head}, query {int(query[row])}, key {int(key[column])}"
    raise LawBroken(graft.name(), LAW, label(node), f"{place}: {now}, but {was} before")


def _at(seen: Seen, head: int, row: int, column: int) -> float:
    return float(seen.bias[min(head, len(seen.bias) - 1), row, column])


def _same_heads(graft: Graft, node: ir.Node, found: Array, expected: Array) -> None:
    gap = np.abs(found - expected).max(axis=-1)
    kind = node.inputs[0].dtype if node.inputs[0] is not None else None
    step = 32 * rounding((kind or ir.DataType.FLOAT).numpy())
    limit = max(step, _TURNED) * max(1.0, float(np.abs(expected).max(initial=0.0)))
    if not (gap <= limit).all():
        first = int(np.flatnonzero(~(gap <= limit))[0])
        raise LawBroken(
            graft.name(), LAW, label(node),
            f"heads at position {first} are turned differently than before: {gap[first]:.3g} > "
            f"{limit:.3g}",
        )  # fmt: skip


@dataclass
class Compared:
    """What was compared, for the text of the law."""

    attentions: int = 0
    masks: int = 0
    whole: int = 0
    longest: int = 0
    rotary: int = 0

    def text(self, whose: str) -> str:
        """One line."""
        whole = f" (all of it up to {self.whole})" if self.whole else ""
        turned = f", rotary over {self.rotary} positions" if self.rotary else ""
        return (
            f"{self.masks} different masks of {self.attentions} attentions equal {whose} up to "
            f"{self.longest} positions{whole}{turned}"
        )
