"""prune-branch: without outputs that nobody needs, and all that only they were computed with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir

from graftline.errors import LawBroken, NotApplicable, nearest
from graftline.evaluate import Feed
from graftline.law import Evidence
from graftline.passes.anchors.denoiser import AUXILIARY
from graftline.passes.anchors.reduce import weight_bytes
from graftline.passes.graph.cut import drop_ports
from graftline.passes.pipeline.graft import Graft, WeightFreeLaw
from graftline.ports import by_role, read_ports


def pruned(graft: Graft, before: ir.Model, after: ir.Model) -> Evidence:
    """What is left is read by an output that was kept; how much went."""
    for node in after.graph:
        if not any(v.uses() or v.is_graph_output() for v in node.outputs):
            raise LawBroken(graft.name(), "pruned", f"'{node.name}'", "is read by nobody")
    unread = [v for v in after.graph.initializers.values() if not v.uses()]
    if left := [v.name or "" for v in unread if not v.is_graph_output()]:
        raise LawBroken(graft.name(), "pruned", f"weight '{left[0]}'", "is read by nobody")
    gone, sizes = len(before.graph) - len(after.graph), (weight_bytes(before), weight_bytes(after))
    return Evidence(f"{gone} nodes gone; {sizes[0]:,} bytes of weights became {sizes[1]:,}")


@dataclass(frozen=True)
class PruneBranch(Graft):
    """Removes outputs beside the prediction, with the nodes, weights and inputs that only they
    read; the outputs that are kept are the host's.

    `outputs` are names joined by `+`, e.g. `auxiliary.0+auxiliary.2`; none: all auxiliary ones. It
    adds no input.
    """

    weight_free: ClassVar[tuple[WeightFreeLaw, ...]] = (pruned,)

    outputs: str = ""

    def names(self, model: ir.Model) -> list[str]:
        """The outputs that go."""
        known = [p.name for p in by_role(read_ports(model), AUXILIARY, "out")]
        return self.outputs.split("+") if self.outputs else known

    def requires(self, model: ir.Model) -> None:
        known = [p.name for p in by_role(read_ports(model), AUXILIARY, "out")]
        if not known:
            raise NotApplicable(f"{self.name()}: the host has no output beside the one it is for")
        if odd := [name for name in self.names(model) if name not in known]:
            raise NotApplicable(
                f"{self}: '{odd[0]}' is no auxiliary output{nearest(odd[0], known)}"
            )

    def apply(self, model: ir.Model) -> None:
        drop_ports(model, self.dropped(model))

    def dropped(self, before: ir.Model) -> frozenset[str]:
        """The outputs, and inputs that nothing reads without them."""
        rest, names = before.clone(), self.names(before)
        drop_ports(rest, names)
        unread = [v.name or "" for v in rest.graph.inputs if not v.uses()]
        used = {v.name for v in before.graph.inputs if v.uses()}
        return frozenset([*names, *(name for name in unread if name in used)])

    def neutral(self, feed: Feed, after: ir.Model) -> Feed:
        names = {v.name for v in after.graph.inputs}
        return {name: array for name, array in feed.items() if name in names}
