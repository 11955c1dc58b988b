"""A host with fewer blocks, on which the numeric laws are quick: the same graph, cut short."""

from __future__ import annotations

import onnx_ir as ir

from graftline.passes.anchors import block_outputs, stamp_anchors
from graftline.passes.emit import drop_unused


def reduce_host(model: ir.Model, blocks: int) -> ir.Model:
    """A copy that keeps the first `blocks` blocks (all of them where there are no more)."""
    reduced = model.clone()
    stamp_anchors(reduced)
    stream = block_outputs(reduced.graph)
    if len(stream) > blocks:
        last, kept = stream[-1], stream[blocks - 1]
        for user, index in list(last.uses()):
            user.replace_input_with(index, kept)
        drop_unused(reduced)
    for name in [n for n, v in reduced.graph.initializers.items() if not v.uses()]:
        del reduced.graph.initializers[name]
    return reduced
