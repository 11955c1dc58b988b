"""What an Attention node says: its mask, and what its canonical form cannot say."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from graftline.evaluate import Array
from graftline.passes.canonical.mask.lift import Lift, Lifted
from graftline.passes.canonical.mask.mask import Bias
from graftline.passes.canonical.shapes import Measures
from graftline.passes.graph.meaning import World


def unsupported(node: ir.Node, measures: Measures, hidden: set[ir.Value]) -> str | None:
    """What an Attention node says that its canonical form cannot."""
    mask, *pasts, padding = [*node.inputs, None, None, None, None][3:7]
    if padding is not None:
        return "Attention over a padded cache is not supported"
    if any(past is not None and 0 not in measures.shape(past) for past in pasts):
        return "an Attention node keeps its own cache"
    if mask is not None and mask in hidden:
        return "the mask of an attention depends on activations"
    if any(v.uses() or v.is_graph_output() for v in node.outputs[3:]):
        return "an Attention node outputs its scores"
    precision = node.attributes.get_int("softmax_precision", ir.DataType.FLOAT.value)
    if precision != ir.DataType.FLOAT.value:
        return f"softmax_precision {precision} is not supported: softmax is computed in fp32"
    return None


def bias_of_mask(mask: ir.Value | None, causal: bool, measures: Measures) -> Bias:
    """The bias of an Attention node: its mask input, and what it says itself."""

    def at(world: World, batch: int, length: int) -> Array:
        values = np.zeros((1, 1, length, length), np.float32)
        if mask is not None:
            held = world.value(mask)
            values = np.where(held, np.float32(0), -np.inf) if held.dtype == np.bool_ else held
        if causal:
            values = np.where(np.tril(np.ones((length, length), bool)), values, -np.inf)
        values = values.reshape((1,) * (4 - values.ndim) + values.shape)
        return np.broadcast_to(values, (*values.shape[:2], length, length))

    def lift(lifting: Lift) -> Lifted:
        return lifting.attention_mask(mask, causal)

    shape = measures.shape(mask) if mask is not None else ()
    heads = shape[1] if len(shape) == 4 else 1
    return Bias(at, lift, [mask] if mask is not None else [], heads)
