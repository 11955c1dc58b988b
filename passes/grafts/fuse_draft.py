"""fuse-draft: the step drafts the next tree from a table of candidates that it keeps itself."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from graftline.errors import NotApplicable
from graftline.evaluate import Feed
from graftline.passes.graph.emit import Emit, new_input, new_output
from graftline.passes.graph.operators import call, calls
from graftline.passes.graph.ports import port_of, roles_of
from graftline.passes.laws.fused import drafted
from graftline.passes.pipeline.graft import Graft, Law, Stage
from graftline.plugins.candidate_update import CANDIDATE_UPDATE
from graftline.plugins.draft_tree import DRAFT_TREE
from graftline.plugins.tree_verify import TREE_VERIFY
from graftline.ports import Port, by_role, read_ports, write_ports

INT32, INT64 = ir.DataType.INT32, ir.DataType.INT64


@dataclass(frozen=True)
class FuseDraft(Graft):
    """Token Recycling (arXiv 2408.08696) in the graph. Adds table [V, W] int32, the W latest
    candidates of every token (-1: none), and the static tree template.parents, template.ranks [M];
    outputs table.out after this step, and next.tokens, next.parents [B, M].

    `levels` is the depth of the deepest template. Neutral: an empty table and a root alone.
    """

    stage: ClassVar[Stage] = "fuse"

    width: int = 8
    levels: int = 8
    laws: ClassVar[tuple[Law, ...]] = (drafted,)

    def requires(self, model: ir.Model) -> None:
        name, ports = self.name(), read_ports(model)
        if not calls(model.graph, TREE_VERIFY):
            raise NotApplicable(f"{name} drafts from a verified tree; put fuse-verify before it")
        if (port := port_of(model, "table")) is not None:
            raise NotApplicable("the graph already drafts its next tree", [port.name])
        if self.width < 1 or self.levels < 1:
            raise NotApplicable(f"{name}: width and levels are at least 1, not {self}")
        topk = by_role(ports, "topk_ids")
        kept = int(topk[0].shape[-1]) if topk else 0
        if kept < self.width:
            raise NotApplicable(
                f"{name}{{width={self.width}}} reads as many candidates per node and the graph "
                f"gives {kept}; put reduce-logits{{topk={max(self.width, 2)}}} before it"
            )

    def apply(self, model: ir.Model) -> None:
        graph, ports = model.graph, list(read_ports(model))
        vocabulary = by_role(ports, "logits")[0].shape[-1]
        given = {
            name: new_input(graph, name, dtype, shape)
            for name, dtype, shape in (
                ("table", INT32, (vocabulary, self.width)),
                ("template.parents", INT64, ("M",)),
                ("template.ranks", INT64, ("M",)),
            )
        }
        ports += [typed_port(v, "in") for v in given.values()]
        emit = Emit(graph, self.name())
        verify = calls(graph, TREE_VERIFY)[0]
        tokens, parents = verify.inputs[1:3]
        path, _, _, root = verify.outputs
        assert tokens is not None
        assert parents is not None
        table = given["table"]
        seen = [table, tokens, parents, self._candidates(emit, ports), path]
        (updated,) = call(model, emit, CANDIDATE_UPDATE, seen)
        plan = [updated, root, given["template.parents"], given["template.ranks"]]
        drafted = call(model, emit, DRAFT_TREE, plan, levels=self.levels)
        new_output(graph, updated, "table.out", INT32, (vocabulary, self.width))
        ports.append(typed_port(updated, "out", "table"))
        for value, role, mirror in zip(
            drafted, ("tokens", "parents"), (tokens, parents), strict=True
        ):
            new_output(graph, value, f"next.{role}", INT64, ("B", "M"))
            ports.append(typed_port(value, "out", mirror.name))
        write_ports(model, ports)

    def _candidates(self, emit: Emit, ports: list[Port]) -> ir.Value:
        """[B, N, W] int32: the best candidates after every node."""
        port = by_role(ports, "topk_ids")[0]
        best = next(v for v in emit.graph.outputs if v.name == port.name)
        if port.shape[-1] != self.width:
            ends = [emit.const(f"topk.{i}", [i], np.int64) for i in (0, self.width)]
            best = emit.op("Slice", [best, *ends, emit.const("axes.-1", [-1], np.int64)])
        return emit.op("Cast", [best], to=INT32)

    def neutral(self, feed: Feed, after: ir.Model) -> Feed:
        vocabulary = int(by_role(read_ports(after), "table", "in")[0].shape[0])
        given = {
            "table": np.full((vocabulary, self.width), -1, np.int32),
            "template.parents": np.asarray([-1], np.int64),
            "template.ranks": np.asarray([0], np.int64),
        }
        return feed | roles_of(after).feed(**given)


def typed_port(value: ir.Value, direction: str, mirror: str | None = None) -> Port:
    """The port of a typed graph input or output; its role is its name."""
    assert value.name is not None
    assert value.dtype is not None
    assert value.shape is not None
    shape = tuple(d if isinstance(d, int) else str(d.value) for d in value.shape)
    dtype = value.dtype.numpy().name
    out = "in" if direction == "in" else "out"
    compare = "equal" if out == "out" else "close"
    return Port(value.name, value.name, out, dtype, shape, mirror=mirror, compare=compare)
