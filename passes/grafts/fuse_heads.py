"""fuse-heads: the step drafts the next tree by draft heads, from the last row that it accepted."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from graftline.errors import NotApplicable
from graftline.evaluate import Feed
from graftline.facts import DraftHeadFacts, read_facts
from graftline.owners import HEAD
from graftline.passes.grafts.draft_heads import (
    bring_out,
    candidates,
    check_state,
    heads_tap,
    logits_of,
)
from graftline.passes.grafts.fuse_draft import typed_port
from graftline.passes.grafts.head_parts import HeadParts, carried_heads, head_parts
from graftline.passes.graph.emit import Emit, new_input, new_output
from graftline.passes.graph.operators import calls
from graftline.passes.graph.ports import port_of, roles_of, value_of
from graftline.passes.graph.text import write
from graftline.passes.laws.fused_heads import drafted_by_heads
from graftline.passes.pipeline.graft import Graft, Law, Stage
from graftline.plugins.tree_verify import TREE_VERIFY
from graftline.ports import read_ports, write_ports

INT64 = ir.DataType.INT64
TEMPLATE = ("template.parents", "template.depths", "template.ranks")
_LAST = """
    last = ReduceMax (path, axis_1)
    state = GatherND <batch_dims = 1> (hidden, Unsqueeze (last, axis_2))
"""
"""[B, 1, H]: the state of the last node of a path, which ascends and ends in -1."""
_TREE = """
    head = Max (Sub (depths, one), zero)
    places = Add (Mul (head, width), ranks)
    named = Gather <axis = 1> (Reshape (ids, of_sequence), places)
    tokens = Where (Equal (depths, zero), Unsqueeze (root, axis_1), named)
    parents = Expand (Unsqueeze (above, axis_0), Shape (tokens))
"""
"""[B, M] both: the root, which is known, and below it candidates [B, 1, heads, k] by depth and
rank."""


@dataclass(frozen=True)
class FuseHeads(Graft):
    """Medusa (arXiv 2401.10774) in the graph. Behind the last node that a step accepts its heads
    draft the next tree, of a static template: node n is candidate template.ranks[n] of the head of
    its depth template.depths[n] - 1, below node template.parents[n] (each [M]).

    Outputs next.tokens, next.parents [B, M], and of the owner head.0 heads.topk_ids and
    heads.topk_logits [B, 1, heads, k]. The heads run for one row of a sequence, whatever the tree.
    Neutral: a root alone.
    """

    stage: ClassVar[Stage] = "fuse"

    topk: int = 10
    laws: ClassVar[tuple[Law, ...]] = (drafted_by_heads,)

    def requires(self, model: ir.Model) -> None:
        name, ports = self.name(), read_ports(model)
        if not calls(model.graph, TREE_VERIFY):
            raise NotApplicable(f"{name} drafts from a verified tree; put fuse-verify before it")
        if (port := port_of(model, "next.tokens", "out")) is not None:
            raise NotApplicable("the graph already drafts its next tree", [port.name])
        carried = carried_heads(model)
        facts = None if carried is None else read_facts(carried)
        if not isinstance(facts, DraftHeadFacts):
            raise NotApplicable(
                f"{name} needs heads that read nothing but a state (Medusa's); give them: --head "
                "PATH"
            )
        check_state(name, model, facts.hidden)
        if not 1 <= self.topk <= facts.vocabulary:
            raise NotApplicable(
                f"{name}{{topk={self.topk}}}: the heads score {facts.vocabulary} tokens"
            )
        if taken := [p for p in ports if p.owner == HEAD]:
            raise NotApplicable("the graph has draft heads already", [taken[0].name])

    def apply(self, model: ir.Model) -> None:
        graph, parts, tap = model.graph, head_parts(model), heads_tap(model)
        assert isinstance(parts, HeadParts)
        assert tap is not None
        given = [new_input(graph, name, INT64, ("M",)) for name in TEMPLATE]
        verify, emit = calls(graph, TREE_VERIFY)[0], Emit(graph, self.name())
        tokens, parents = verify.inputs[1:3]
        path, _, _, root = verify.outputs
        assert tokens is not None
        assert parents is not None
        read = {"path": path, "hidden": value_of(model, tap)}
        (state,) = write(emit, _LAST, read, ["state"])
        best = candidates(emit, logits_of(emit, state, parts), parts, self.topk)
        drafted = self._tree(emit, best[0], root, given)
        ports = [typed_port(v, "in") for v in given]
        ports += bring_out(graph, best, ("B", 1, parts.heads, self.topk), HEAD)
        for value, role, mirror in zip(
            drafted, ("tokens", "parents"), (tokens, parents), strict=True
        ):
            new_output(graph, value, f"next.{role}", INT64, ("B", "M"))
            ports.append(typed_port(value, "out", mirror.name))
        write_ports(model, [*read_ports(model), *ports])

    def _tree(
        self, emit: Emit, ids: ir.Value, root: ir.Value, template: list[ir.Value]
    ) -> list[ir.Value]:
        given = dict(zip(("above", "depths", "ranks"), template, strict=True))
        given |= {
            "ids": ids, "root": root, "width": emit.const("heads.width", self.topk, np.int64),
            "of_sequence": emit.const("heads.of_sequence", [0, -1], np.int64),
        }  # fmt: skip
        return write(emit, _TREE, given, ["tokens", "parents"])

    def neutral(self, feed: Feed, after: ir.Model) -> Feed:
        values = (np.asarray([value], np.int64) for value in (-1, 0, 0))
        return feed | roles_of(after).feed(**dict(zip(TEMPLATE, values, strict=True)))
