"""fold-stored: what depends on stored numbers alone as constants."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir

from graftline.errors import LawBroken, NotApplicable
from graftline.law import Evidence
from graftline.passes.graph.meaning import label
from graftline.passes.graph.stored import allowed_bytes, fold_stored, foldable, stored_nodes
from graftline.passes.laws.folded import went
from graftline.passes.pipeline.graft import Graft, WeightFreeLaw


def folded(graft: Graft, before: ir.Model, after: ir.Model) -> Evidence:
    """No node is left that reads constants alone and could be one, and no constant is larger than
    what it may be made of."""
    nodes, left = stored_nodes(before.graph), foldable(after.graph)
    sources = {f"folded.{v.name}": (n, s) for n, s in nodes.items() for v in n.outputs}
    for name, value in after.graph.initializers.items():
        if name in sources and value.const_value is not None:
            node, own = sources[name]
            if value.const_value.nbytes > allowed_bytes(own):
                by = f"{value.const_value.nbytes:,} bytes of {allowed_bytes(own):,}"
                raise LawBroken(graft.name(), "folded", label(node), by)
    why = "since they would be larger than what they are made of"
    return went(graft.name(), before, after, nodes, "stored numbers alone", why,
                lambda node: node not in left)  # fmt: skip


@dataclass(frozen=True)
class FoldStored(Graft):
    """Makes constants of all that depends on stored numbers alone: the projections, norms and masks
    of prototypes that training kept (ProtoOcc, arXiv 2412.08774).

    A constant has at most as many bytes as the stored numbers that it is made of, or 64 KiB: where
    a table is broadcast to all places, the table becomes the constant. It adds no input: the graph
    is the host.
    """

    weight_free: ClassVar[tuple[WeightFreeLaw, ...]] = (folded,)

    def requires(self, model: ir.Model) -> None:
        if not foldable(model.graph):
            raise NotApplicable(
                f"{self.name()}: no node depends on stored numbers alone and makes none larger; "
                "leave the pass out"
            )

    def apply(self, model: ir.Model) -> None:
        fold_stored(model, self.name())
