"""KVCommit as TensorRT takes it: a step first commits what the last step accepted.

TensorRT's key-value cache update reads a network input and writes a network output, so a cache is
written once in a step. That one write is a window that holds the rows of the last accepted path,
then the new rows. Everything is ordered by data: the rows moved are read before they are written.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
import onnx_ir as ir

from graftline.errors import NotApplicable
from graftline.evaluate import Array, Feed
from graftline.law import Evidence
from graftline.owners import TARGET
from graftline.passes.grafts.kv_cache import POISON
from graftline.passes.graph.emit import Emit, drop_unused, new_input
from graftline.passes.graph.operators import calls
from graftline.passes.graph.ports import input_of, output_of, port_of, roles_of
from graftline.passes.graph.text import write
from graftline.passes.laws.compare import Comparison, activation_dtype
from graftline.passes.laws.fused import LENGTHS, ROUNDS, TreeStep
from graftline.passes.pipeline.graft import Evaluate, Graft
from graftline.plugins.kv_commit import KV_COMMIT
from graftline.ports import Port, read_ports, slot_ports, write_ports
from graftline.roles import Roles

PATH, COUNT, NEXT = "last.path", "last.count", "next.write_index"
"""Roles of what a step takes of the last one and gives the next; the first two by these names."""
SUFFIX = ".committed"
"""What fuse-verify adds to a cache's name for the output that has its path committed."""
_WINDOW = """
    moved_1 = Shape <start = 1, end = 2> (path)
    rows_1 = Shape <start = 1, end = 2> (tokens)
    size_1 = Add (moved_1, rows_1)
    start = Min (index, Sub (Shape <start = 2, end = 3> (cache), size_1))
    slot = Add (Unsqueeze (start, axis_1), Range (zero, Squeeze (size_1, axis_0), one))
    since = Sub (slot, Unsqueeze (index, axis_1))
    row_free = Sub (slot, Unsqueeze (length, axis_1))
    known = Min (Max (since, zero), Sub (moved_1, one_1))
    moved_from = Add (Sub (slot, since), GatherElements <axis = 1> (path, known))
    begun = GreaterOrEqual (since, zero)
    moves = And (begun, Less (since, Unsqueeze (count, axis_1)))
    source = Where (moves, moved_from, slot)
    row = Min (Max (row_free, zero), Sub (rows_1, one_1))
    fresh = GreaterOrEqual (row_free, zero)
"""


@dataclass
class NextStepCommits:
    """Takes the outputs cache.*.committed away and adds the ports last.path [B, P], last.count [B],
    mirrored by path and count.

    write_index is now where the last step's tree was written, and next.write_index where this
    step's is: last.count slots further. With last.count 0 nothing is moved (a first step, and one
    whose last was a chain: the host then gives write_index itself). The window has P + N slots and
    ends at the cache's end at the latest, so S >= P + N.
    """

    model: ir.Model
    by: str
    shaped: dict[int, list[ir.Value]] = field(default_factory=dict[int, list[ir.Value]])
    """Number of heads -> the window's three values for caches of so many."""

    def apply(self) -> None:
        """Rewrite the graph in place, where it commits its caches."""
        graph = self.model.graph
        commits = calls(graph, KV_COMMIT)
        if not commits:
            return
        index = input_of(self.model, "write_index")
        assert index is not None
        self.path = new_input(graph, PATH, ir.DataType.INT64, ["B", "P"])
        self.count = new_input(graph, COUNT, ir.DataType.INT64, ["B"])
        self.first = Emit(graph, self.by, graph[0])
        length = self.first.op("Add", [index, self.count])
        length.shape, length.type = index.shape, index.type
        for node, place in list(index.uses()):
            if node is not length.producer():
                node.replace_input_with(place, length)
        scatters = [self._scatter(node) for node in commits]
        self._window(index, length, scatters[0].inputs[0])
        for scatter in scatters:
            self._write(scatter)
        self._interface(length, {v for node in commits for v in node.outputs})

    def _scatter(self, commit: ir.Node) -> ir.Node:
        """What wrote the rows that a KVCommit moves."""
        written = commit.inputs[0]
        node = written.producer() if written is not None else None
        if node is None or node.op_type != "TensorScatter":
            raise NotApplicable(
                "lower-tensorrt: KVCommit of a cache that no TensorScatter wrote; run kv-cache",
                [commit.name or commit.op_type],
            )
        return node

    def _window(self, index: ir.Value, length: ir.Value, cache: ir.Value | None) -> None:
        """[B, P + N] each: the slot to read, the new row, and `fresh`, which says which of them."""
        tokens = input_of(self.model, "tokens")
        assert tokens is not None
        assert cache is not None
        inputs = {
            "index": index, "length": length, "tokens": tokens, "cache": cache,
            "path": self.path, "count": self.count,
        } # fmt: skip
        made, names = ("start", "source", "row", "fresh"), ("window.start",)
        values = write(self.first, _WINDOW, inputs, made, names)
        self.start, self.source, self.row, self.fresh = values

    def _write(self, scatter: ir.Node) -> None:
        """Write the window of one cache."""
        cache, rows = scatter.inputs[:2]
        assert cache is not None
        assert rows is not None
        assert cache.shape is not None
        e = Emit(self.model.graph, self.by, scatter)
        source, row, fresh = self._by_head(int(cache.shape[1])) # type: ignore[arg-type]
        old, new = (
            e.op("GatherND", [values, at], batch_dims=2)
            for values, at in ((cache, source), (rows, row))
        )
        window = e.op("Where", [fresh, new, old])
        for value in (old, new, window):
            value.type = cache.type
        scatter.replace_input_with(1, window)
        scatter.replace_input_with(2, self.start)

    def _by_head(self, heads: int) -> list[ir.Value]:
        """source and row as [B, K, P + N, 1], fresh as [B, 1, P + N, 1]; made once."""
        if heads not in self.shaped:
            e = self.first
            axes = e.const("axes.1_3", [1, 3], np.int64)
            wide = [e.op("Unsqueeze", [v, axes]) for v in (self.source, self.row, self.fresh)]
            shape = e.const(f"heads.{heads}", [1, heads, 1, 1], np.int64)
            self.shaped[heads] = [*(e.op("Expand", [v, shape]) for v in wide[:2]), wide[2]]
        return self.shaped[heads]

    def _interface(self, length: ir.Value, gone: set[ir.Value]) -> None:
        """The outputs and ports of a step whose commit comes with the next."""
        outputs, counter = self.model.graph.outputs, output_of(self.model, NEXT)
        assert counter is not None, "a step that commits counts on"
        kept = [v for v in outputs if v not in gone and v is not counter]
        length.name, counter.name = counter.name, f"{counter.name}.old"
        outputs[:] = [*kept, length]
        names = {v.name for v in outputs}
        mirrors = {"path": PATH, "count": COUNT}
        ports = [
            replace(p, mirror=mirrors[p.role]) if p.role in mirrors else p
            for p in read_ports(self.model)
            if p.direction == "in" or p.name in names
        ]
        ports.append(Port(PATH, PATH, "in", "int64", ("B", "P")))
        ports.append(Port(COUNT, COUNT, "in", "int64", ("B",)))
        write_ports(self.model, ports)
        drop_unused(self.model)


def unmoved(feed: Feed, after: Roles) -> Feed:
    """The neutral values of the new ports: no last step."""
    batch, rows = feed[after.inputs["tokens"]].shape
    chain = np.tile(np.arange(rows, dtype=np.int64), (batch, 1))
    return after.feed(**{PATH: chain, COUNT: np.zeros(batch, np.int64)})


def committed(outputs: Feed, after: ir.Model) -> Feed:
    """What the graph before would have given: its committed caches, and the length after them."""
    roles = roles_of(after)
    if NEXT not in roles.outputs:
        return outputs
    lengths, path, count = (outputs[roles.outputs[role]] for role in (NEXT, "path", "count"))
    made = {**outputs, roles.outputs[NEXT]: lengths + count}
    for port in slot_ports(read_ports(after), "out", TARGET):
        (moved,) = KV_COMMIT.reference(outputs[port.name], path, count, lengths)
        made[f"{port.mirror}{SUFFIX}"] = moved
    return made


def deferred(
    graft: Graft, before: ir.Model, after: ir.Model, feed: Feed, evaluate: Evaluate
) -> Evidence:
    """A second step gives the logits it gives after the commit, though it makes the commit."""
    if port_of(after, COUNT) is None:
        return Evidence("no cache is committed by the step")
    roles, made = roles_of(before), roles_of(after)
    slots = int(slot_ports(read_ports(after), "in", TARGET)[0].shape[2])
    step = TreeStep.of(before, feed, LENGTHS[0])
    node = np.arange(step.parents.shape[1])
    step.parents[:] = np.where((node == 2) | (node == 3), 1, node - 1)  # the path leaves node 2 out
    step.caches = {k: _grown(v, slots) for k, v in step.caches.items()}
    batch, whole = len(step.tokens), len(feed[roles.inputs["tokens"]])
    given = {k: v[:batch] if len(v) == whole else v for k, v in feed.items()}
    heads = [p.name for p in slot_ports(read_ports(before), "in") if p.owner != TARGET]
    given |= {name: _grown(given[name], slots) for name in heads}
    for _ in range(ROUNDS):
        step.draft(evaluate(before, given | step.fused())[roles.outputs["argmax"]])
    one = evaluate(before, given | step.fused())
    path, count = (one[roles.outputs[role]] for role in ("path", "count"))
    moved = int(np.sum((path >= 0) & (path != np.arange(path.shape[1]))))
    written, done = _written(before, one)
    second, logits = given | step.fused(), roles.outputs["logits"]
    following = roles.feed(write_index=one[roles.outputs[NEXT]])
    expected = evaluate(before, second | done | following)[logits]
    late = graft.neutral(second | written, after)
    late |= made.feed(**{PATH: path, COUNT: count, "write_index": step.lengths})
    comparison = Comparison(graft.name(), "deferred", activation_dtype(after))
    gap = comparison.output(logits, evaluate(after, late)[logits], expected)
    return Evidence(f"{moved} rows are moved by the step after", gap, comparison.limit)


def _written(before: ir.Model, outputs: Feed) -> tuple[Feed, Feed]:
    """The caches as a step wrote them, and as it committed them, as inputs of the next."""
    sides: tuple[Feed, Feed] = {}, {}
    for port in slot_ports(read_ports(before), "out", TARGET):
        if port.mirror is not None:
            sides[port.name.endswith(SUFFIX)][port.mirror] = outputs[port.name]
    return sides


def _grown(cache: Array, slots: int) -> Array:
    """A cache with room for two steps."""
    room = [(0, 0)] * cache.ndim
    room[2] = (0, slots - cache.shape[2])
    return np.pad(cache, room, constant_values=POISON)
