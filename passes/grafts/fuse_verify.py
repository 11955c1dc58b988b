"""fuse-verify: the step judges its own tree and commits the caches, with no host in between."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from graftline.errors import NotApplicable
from graftline.evaluate import Feed
from graftline.owners import TARGET
from graftline.passes.grafts.draws import Draws, uniforms
from graftline.passes.grafts.reduce_logits import Groups
from graftline.passes.grafts.tree_inputs import TreeInputs
from graftline.passes.graph.emit import Emit, drop_unused, new_input, new_output
from graftline.passes.graph.operators import call
from graftline.passes.graph.ports import cache_of, input_of, port_of, roles_of
from graftline.passes.laws.fused import fused
from graftline.passes.pipeline.graft import SHARED, Graft, Law, Stage
from graftline.plugins.kv_commit import KV_COMMIT
from graftline.plugins.tree_verify import TREE_VERIFY
from graftline.ports import Port, by_role, read_ports, slot_ports, write_ports

NODES = ("B", "N")
SETTINGS = {
    "temperature": ir.DataType.FLOAT, "min_p": ir.DataType.FLOAT,
    "seed": ir.DataType.INT64, "ordinal": ir.DataType.INT64,
}  # fmt: skip
"""Inputs [B] of a step that samples."""


@dataclass(frozen=True)
class FuseVerify(Graft):
    """Adds the port parents [B, N], from which the graph makes positions and mask, and outputs
    accepted [B, N], count [B], path [B, N], next.write_index [B] and the committed caches.

    A node stands when it carries the token that the target chooses after its parent: the argmax,
    or with sample=true one draw at temperature [B] (0: the argmax) and min_p [B], numbered by seed
    [B] and ordinal [B], the tokens chosen so far; the exact rule for drafts that are point masses.
    Neutral: a chain, greedy.
    """

    stage: ClassVar[Stage] = "fuse"

    sample: bool = False
    laws: ClassVar[tuple[Law, ...]] = (fused,)
    computes: ClassVar[tuple[str, ...]] = ("positions", "mask", "rows")

    def requires(self, model: ir.Model) -> None:
        name = self.name()
        if (port := port_of(model, "parents")) is not None:
            raise NotApplicable("the graph already verifies its tree", [port.name])
        if port_of(model, "mask") is None:
            raise NotApplicable(f"{name} needs a tree mask; put kv-cache | tree-mask before it")
        if not by_role(read_ports(model), "argmax"):
            raise NotApplicable(f"{name} needs the target's argmax; put reduce-logits before it")

    def apply(self, model: ir.Model) -> None:
        graph = model.graph
        tokens, write_index = (input_of(model, role) for role in ("tokens", "write_index"))
        cache = cache_of(model)
        assert cache is not None
        assert tokens is not None
        assert write_index is not None
        parents = new_input(graph, "parents", ir.DataType.INT64, NODES)
        first = Emit(graph, self.name(), graph[0], block=SHARED)
        tree = TreeInputs(first, tokens, parents, write_index, cache)
        _supersede(model, "positions", tree.positions)
        _supersede(model, "mask", tree.mask)
        _score_all_rows(model)
        gone = self.dropped(model)
        kept = [_whole(p) for p in read_ports(model) if p.name not in gone]
        ports = [*kept, Port("parents", "parents", "in", "int64", NODES)]
        emit = Emit(graph, self.name())
        choice = _output(graph, by_role(ports, "argmax")[0].name)
        settings = _settings(graph) if self.sample else {}
        ports += [Port(n, n, "in", SETTINGS[n].numpy().name, ("B",)) for n in settings]
        if self.sample:
            choice = self._chosen(model, emit, choice, settings, tree.depth)
        path, accepted, count, _ = call(model, emit, TREE_VERIFY, [choice, tokens, parents])
        for value, role, shape in (
            (accepted, "accepted", NODES), (count, "count", ("B",)), (path, "path", NODES)
        ):  # fmt: skip
            new_output(graph, value, role, ir.DataType.INT64, shape)
            ports.append(Port(role, role, "out", "int64", shape, compare="equal"))
        written = slot_ports(ports, "out", TARGET)
        ports += [_commit(model, emit, port, path, count, write_index) for port in written]
        counters = {"write_index": write_index}
        counters |= {"ordinal": settings["ordinal"]} if self.sample else {}
        ports += [_advance(emit, role, counter, count) for role, counter in counters.items()]
        write_ports(model, ports)
        drop_unused(model)

    def _chosen(
        self,
        model: ir.Model,
        emit: Emit,
        argmax: ir.Value,
        settings: dict[str, ir.Value],
        depth: ir.Value,
    ) -> ir.Value:
        """[B, N]: a draw after every node, and the argmax where the temperature is 0."""
        ports = list(read_ports(model))
        logits = _output(emit.graph, by_role(ports, "logits")[0].name)
        numbers = uniforms(model, emit, settings["seed"], settings["ordinal"], depth)
        temperature = settings["temperature"]
        drawn = Draws(emit, Groups(emit, logits, ports), temperature, settings["min_p"]).of(numbers)
        warm = emit.op("Greater", [temperature, emit.const("zero.float", 0.0, np.float32)])
        column = emit.op("Unsqueeze", [warm, emit.const("axes.1", [1], np.int64)])
        return emit.op("Where", [column, drawn, argmax], "choice")

    def neutral(self, feed: Feed, after: ir.Model) -> Feed:
        roles, left = roles_of(after), {value.name for value in after.graph.inputs}
        batch, rows = feed[roles.inputs["tokens"]].shape
        chain = np.tile(np.arange(-1, rows - 1, dtype=np.int64), (batch, 1))
        kept = {name: array for name, array in feed.items() if name in left}
        given = SETTINGS if self.sample else {}
        greedy = {n: np.zeros(batch, dtype.numpy()) for n, dtype in given.items()}
        return kept | roles.feed(parents=chain, **greedy)


def _settings(graph: ir.Graph) -> dict[str, ir.Value]:
    return {name: new_input(graph, name, dtype, ["B"]) for name, dtype in SETTINGS.items()}


def _supersede(model: ir.Model, role: str, value: ir.Value) -> None:
    """Put a computed value in the place of a graph input."""
    old = input_of(model, role)
    assert old is not None
    old.replace_all_uses_with(value)
    model.graph.inputs.remove(old)


def _score_all_rows(model: ir.Model) -> None:
    """Undo select-rows: a verified tree needs the logits of every node."""
    graph, rows = model.graph, input_of(model, "rows")
    if rows is None:
        return
    for index in [n.outputs[0] for n in rows.consumers()]:
        for pick in list(index.consumers()):
            hidden = pick.inputs[0]
            assert hidden is not None
            pick.outputs[0].replace_all_uses_with(hidden)
    graph.inputs.remove(rows)
    for value in [v for node in graph for v in node.outputs]:
        if value.shape is not None:
            value.shape = ir.Shape(["N" if _symbol(d) == "R" else d for d in value.shape])


def _symbol(dim: int | ir.SymbolicDim) -> str | None:
    return None if isinstance(dim, int) else dim.value


def _whole(port: Port) -> Port:
    """A port whose rows are all of the tree's."""
    return replace(port, shape=tuple("N" if d == "R" else d for d in port.shape))


def _output(graph: ir.Graph, name: str) -> ir.Value:
    return next(v for v in graph.outputs if v.name == name)


def _commit(
    model: ir.Model, emit: Emit, port: Port, path: ir.Value, count: ir.Value, start: ir.Value
) -> Port:
    """cache.*.committed: a written cache with the accepted path's rows moved to `start` on."""
    cache = _output(model.graph, port.name)
    (committed,) = call(model, emit, KV_COMMIT, [cache, path, count, start])
    assert committed.dtype is not None
    name = f"{port.mirror}.committed"
    new_output(model.graph, committed, name, committed.dtype, port.shape)
    return replace(port, name=name)


def _advance(emit: Emit, role: str, counter: ir.Value, count: ir.Value) -> Port:
    """next.{role} [B]: where the next step goes on."""
    name, moved = f"next.{role}", emit.op("Add", [counter, count])
    new_output(emit.graph, moved, name, ir.DataType.INT64, ["B"])
    return Port(name, name, "out", "int64", ("B",), mirror=counter.name, compare="equal")
