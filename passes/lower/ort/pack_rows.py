"""pack-rows: the rows of several sequences in one call, however many each has.

GroupQueryAttention takes several new rows of one sequence only, so a batch that drafts would be a
call for each sequence. Here all rows lie behind one another, every matrix product and norm runs
once for all of them, and each sequence has an attention of its own over its own caches, which is
the very computation that it has alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import onnx_ir as ir

from graftline.contrib_ops.operands import MICROSOFT
from graftline.errors import NotApplicable
from graftline.evaluate import Feed
from graftline.law import Evidence
from graftline.passes.graph.emit import Emit, drop_unused, new_input, new_output
from graftline.passes.graph.ports import input_of, value_of
from graftline.passes.laws.compare import Comparison, activation_dtype
from graftline.passes.pipeline.graft import ROLE, SHARED, Evaluate, Graft, Law, Stage
from graftline.ports import STREAM, TARGET, Port, by_role, read_ports, slot_ports, write_ports

BATCH = "graftline.batch"
"""Where a model that a law runs notes how many of its sequences the law's feed has."""
ROTARY_POSITIONS, BIAS = 9, 10
"""Inputs of GroupQueryAttention."""


def of_sequence(name: str, sequence: int) -> str:
    """The name of one sequence's cache."""
    return f"{name}.seq{sequence}"


def together(
    graft: Graft, before: ir.Model, after: ir.Model, feed: Feed, evaluate: Evaluate
) -> Evidence:
    """Sequences with different pasts and numbers of rows give, in one call, what each gives alone:
    their logits, and the slots of their caches."""
    assert isinstance(graft, PackRows)
    sequences, rows = feed[next(_row_ports(read_ports(before))).name].shape[:2]
    counts = [1 + (2 * s) % max(1, min(5, rows // 2)) for s in range(graft.sequences)]
    alone: list[Feed] = []
    for s, count in enumerate(counts):
        row = s % sequences
        past = rows - count - s % 2
        one = {k: v[row : row + 1] for k, v in feed.items()}
        head = evaluate(before, _cut(before, one, slice(0, past)))
        step = _cut(before, one, slice(past, past + count))
        step[_index(before)] = np.array([past], np.int64)
        for port in slot_ports(read_ports(before), "out"):
            step[port.mirror or ""] = head[port.name]
        alone.append(step)
    expected = [evaluate(before, step) for step in alone]
    got = evaluate(after, graft.packed(alone, after))
    comparison = Comparison(graft.name(), "together", activation_dtype(after))
    starts = np.cumsum([0, *counts])
    worst = 0.0
    for s, want in enumerate(expected):
        part = got["logits"][:, starts[s] : starts[s + 1]]
        worst = max(worst, comparison.output("logits", part, want["logits"]))
        last = int(alone[s][_index(before)][0]) + counts[s]
        for port in slot_ports(read_ports(before), "out"):
            cache = got[of_sequence(port.name, s)][:, :, :last]
            worst = max(worst, comparison.output(port.name, cache, want[port.name][:, :, :last]))
    what = f"{len(counts)} sequences with {', '.join(map(str, counts))} rows are as each alone"
    return Evidence(what, worst, comparison.limit)


def _cut(model: ir.Model, feed: Feed, rows: slice) -> Feed:
    """A feed of some of a sequence's rows, asking for all of their logits."""
    cut = dict(feed)
    for port in _row_ports(read_ports(model)):
        cut[port.name] = feed[port.name][:, rows]
    for port in by_role(read_ports(model), "rows", "in"):
        cut[port.name] = np.arange(rows.stop - rows.start, dtype=np.int64)[None]
    return cut


def _row_ports(ports: Iterable[Port]) -> Iterator[Port]:
    """Inputs [B, N, ...]: one entry for each new row."""
    roles = "tokens", "positions", STREAM
    return (p for p in ports if p.direction == "in" and p.role in roles)


def _index(model: ir.Model) -> str:
    return by_role(read_ports(model), "write_index", "in")[0].name


@dataclass(frozen=True)
class PackRows(Graft):
    """Rows of `sequences` sequences in one call: tokens and positions [1, N], of all of them, one
    sequence behind the other; counts [sequences], how many each has, at least 1; write_index
    [sequences]; and caches [1, K, S, D] for each sequence.

    For hosts whose attentions are all GroupQueryAttention without a bias: rows of a sequence are a
    chain. Caches that nothing attends to, as an adapter's in its target, are written likewise.
    Neutral: every sequence has as many rows.
    """

    stage: ClassVar[Stage] = "lower"
    laws: ClassVar[tuple[Law, ...]] = (together,)

    sequences: int = 4

    def requires(self, model: ir.Model) -> None:
        if self.sequences < 2:
            raise NotApplicable(f"pack-rows{{sequences={self.sequences}}}: use at least 2")
        if why := unpackable(model):
            raise NotApplicable(f"pack-rows: {why}")

    def apply(self, model: ir.Model) -> None:
        graph, ports = model.graph, read_ports(model)
        emit = Emit(graph, self.name(), graph[0], block=SHARED)
        counts = new_input(graph, "counts", ir.DataType.INT64, [self.sequences])
        index = input_of(model, "write_index")
        assert index is not None
        index.shape = ir.Shape([self.sequences])
        ones = emit.const(f"ones.{self.sequences}", [1] * self.sequences, np.int64)
        totals, lasts = self._lengths(emit, index, counts, ones)
        parts: dict[ir.Value, list[ir.Value]] = {}
        for node in _grouped(model):
            self._unroll(model, node, counts, parts, totals, lasts)
        if alone := _written_alone(model):
            starts = _split(emit, index, ones, self.sequences, 0)
            for node in alone:
                self._unroll_write(model, node, counts, starts)
        kept = [_packed(p, self.sequences) for p in ports if p.state != "slots"]
        for port in kept:
            value_of(model, port).shape = ir.Shape(list(port.shape))
        added = Port("counts", "counts", "in", "int64", (self.sequences,))
        write_ports(model, [*kept, added, *self._caches(ports)])
        drop_unused(model)

    def _lengths(
        self, emit: Emit, index: ir.Value, counts: ir.Value, ones: ir.Value
    ) -> tuple[list[ir.Value], list[ir.Value]]:
        """Of each sequence: its length with its new rows [] and its last slot [1], int32."""
        total = emit.op("Cast", [emit.op("Add", [index, counts])], to=ir.DataType.INT32)
        last = emit.op("Sub", [total, emit.const("one.int32", [1], np.int32)])
        totals, lasts = (_split(emit, v, ones, self.sequences, 0) for v in (total, last))
        return [emit.op("Squeeze", [v]) for v in totals], lasts

    def _unroll(
        self,
        model: ir.Model,
        node: ir.Node,
        counts: ir.Value,
        parts: dict[ir.Value, list[ir.Value]],
        totals: list[ir.Value],
        lasts: list[ir.Value],
    ) -> None:
        """An attention for each sequence in place of one; `parts` has the values that were split by
        sequence before."""
        graph, emit = model.graph, Emit(model.graph, self.name(), node)
        split: dict[int, list[ir.Value]] = {}
        for place in (0, 1, 2, ROTARY_POSITIONS):
            value = node.inputs[place] if place < len(node.inputs) else None
            if value is None:
                continue
            if value not in parts:
                shared = Emit(graph, self.name(), node, block=SHARED)
                by = shared if place == ROTARY_POSITIONS else emit
                parts[value] = _split(by, value, counts, self.sequences, 1)
            split[place] = parts[value]
        attributes = {a.name: a for a in node.attributes.values()}
        outputs: list[ir.Value] = []
        for s in range(self.sequences):
            inputs = list(node.inputs)
            for place, values in split.items():
                inputs[place] = values[s]
            inputs[3:7] = [
                *(_cache(graph, v, s) for v in node.inputs[3:5] if v is not None),
                lasts[s], totals[s],
            ]  # fmt: skip
            made = emit.node(node.op_type, inputs, ["", "", ""], MICROSOFT, **attributes)
            made.metadata_props[ROLE] = node.metadata_props.get(ROLE, "")
            for present, old in zip(made.outputs[1:], node.outputs[1:], strict=True):
                _present(graph, present, old, s)
            outputs.append(made.outputs[0])
        node.outputs[0].replace_all_uses_with(emit.op("Concat", outputs, axis=1))
        _take_away(graph, node, {*node.inputs[3:5], *node.outputs[1:]})

    def _unroll_write(
        self, model: ir.Model, node: ir.Node, counts: ir.Value, starts: list[ir.Value]
    ) -> None:
        """Rows of a cache that nothing attends to are written for each sequence."""
        graph, emit = model.graph, Emit(model.graph, self.name(), node)
        cache, fresh = node.inputs[:2]
        assert cache is not None
        assert fresh is not None
        attributes: dict[str, Any] = {a.name: a.value for a in node.attributes.values()}
        rows = _split(emit, fresh, counts, self.sequences, 2)
        for s, (part, start) in enumerate(zip(rows, starts, strict=True)):
            given = [_cache(graph, cache, s), part, start]
            written = emit.op(node.op_type, given, **attributes)
            _present(graph, written, node.outputs[0], s)
        _take_away(graph, node, {cache, node.outputs[0]})

    def _caches(self, ports: Iterable[Port]) -> Iterator[Port]:
        for port in slot_ports(ports):
            for s in range(self.sequences):
                mirror = None if port.mirror is None else of_sequence(port.mirror, s)
                name = of_sequence(port.name, s)
                yield replace(port, name=name, mirror=mirror, shape=(1, *port.shape[1:]))

    def packed(self, steps: list[Feed], after: ir.Model) -> Feed:
        """One feed of steps [1, N] of one sequence each."""
        ports = [p for p in read_ports(after) if p.direction == "in"]
        counts = [step[next(_row_ports(ports)).name].shape[1] for step in steps]
        starts = np.cumsum([0, *counts])
        feed: Feed = {}
        for port in ports:
            values = [step[port.name] for step in steps if port.name in step]
            if port.role == "counts":
                feed[port.name] = np.asarray(counts, np.int64)
            elif port.role == "rows":
                moved = [v + s for v, s in zip(values, starts[:-1], strict=True)]
                feed[port.name] = np.concatenate(moved, axis=1)
            elif port.state != "slots":
                feed[port.name] = np.concatenate(values, axis=min(1, values[0].ndim - 1))
        for s, step in enumerate(steps):
            for name in step:
                if any(p.name == of_sequence(name, s) for p in ports):
                    feed[of_sequence(name, s)] = step[name]
        return feed

    def neutral(self, feed: Feed, after: ir.Model) -> Feed:
        batch = len(feed[next(_row_ports(read_ports(after))).name])
        if batch > self.sequences:
            raise NotApplicable(f"pack-rows: a feed of {batch} sequences for {self.sequences}")
        after.meta[BATCH] = batch
        rows = [s % batch for s in range(self.sequences)]
        return self.packed([{k: v[r : r + 1] for k, v in feed.items()} for r in rows], after)

    def carried(self, outputs: Feed, after: ir.Model) -> Feed:
        batch, found = after.meta[BATCH], dict[str, np.ndarray]()
        ports = [p for p in read_ports(after) if p.direction == "out"]
        for port in ports:
            value = outputs[port.name]
            if port.state != "slots":
                found[port.name] = value.reshape(self.sequences, -1, *value.shape[2:])[:batch]
        for name in {p.name.rpartition(".")[0] for p in ports if p.state == "slots"}:
            found[name] = np.concatenate([outputs[of_sequence(name, s)] for s in range(batch)])
        return found

    def dropped(self, before: ir.Model) -> frozenset[str]:
        return frozenset(p.name for p in slot_ports(read_ports(before), "in"))

    def replaced(self, before: ir.Model) -> frozenset[str]:
        return frozenset(p.name for p in slot_ports(read_ports(before), "out"))


def unpackable(model: ir.Model) -> str:
    """Why a lowered graph does not take the rows of several sequences; "" when it does."""
    ports = read_ports(model)
    for port in ports:
        if port.owner != TARGET or port.state == "running":
            return f"'{port.name}' is no key or value of the host's own"
        if port.role in ("mask", "parents"):
            return f"rows are chains, and the graph takes trees ('{port.name}')"
    grouped = {id(n) for n in _grouped(model)}
    known = grouped | {id(n) for n in _written_alone(model)}
    for port in slot_ports(ports, "in"):
        users = value_of(model, port).consumers()
        if len(users) != 1 or id(users[0]) not in known:
            return f"'{port.name}' has no GroupQueryAttention of its own"
    for node in _grouped(model):
        if len(node.inputs) > BIAS and node.inputs[BIAS] is not None:
            return f"the attention '{node.name}' adds a bias to its scores"
    return "" if grouped else "it has no attention over a cache"


def _grouped(model: ir.Model) -> list[ir.Node]:
    return [n for n in model.graph if n.op_type == "GroupQueryAttention"]


def _written_alone(model: ir.Model) -> list[ir.Node]:
    """What writes rows of caches that nothing in the graph attends to."""
    found = (n for n in model.graph if n.op_type == "TensorScatter")
    return [n for n in found if n.outputs[0].is_graph_output() and not n.outputs[0].uses()]


def _present(graph: ir.Graph, made: ir.Value, old: ir.Value, sequence: int) -> None:
    """Make a written cache the output of one sequence, as `old` is that of all."""
    assert old.name is not None
    assert old.dtype is not None
    assert old.shape is not None
    shape = [1, *list(old.shape)[1:]]
    new_output(graph, made, of_sequence(old.name, sequence), old.dtype, shape)  # type: ignore[arg-type]


def _take_away(graph: ir.Graph, node: ir.Node, ends: set[ir.Value | None]) -> None:
    """Remove a node with the inputs and outputs of the graph that were its own."""
    for values in (graph.inputs, graph.outputs):
        kept = [v for v in values if v not in ends]
        values.clear()
        values.extend(kept)
    graph.remove(node, safe=True)


def _packed(port: Port, sequences: int) -> Port:
    """A port that had a batch: of all sequences' rows, or with an entry for each sequence."""
    if not port.shape or port.shape[0] != "B":
        return port
    first: int = sequences if len(port.shape) == 1 else 1
    return replace(port, shape=(first, *port.shape[1:]))


def _split(
    emit: Emit, value: ir.Value, sizes: ir.Value, parts: int, axis: int
) -> list[ir.Value]:
    node = emit.node("Split", [value, sizes], [""] * parts, axis=axis)
    return list(node.outputs)


def _cache(graph: ir.Graph, value: ir.Value, sequence: int) -> ir.Value:
    """The input that has one sequence's keys or values of an attention."""
    assert value.name is not None
    assert value.dtype is not None
    assert value.shape is not None
    shape = [1, *list(value.shape)[1:]]
    return new_input(graph, of_sequence(value.name, sequence), value.dtype, shape)  # type: ignore[arg-type]
