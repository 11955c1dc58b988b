"""Routes: another part left out, a stream that is not what it was, a cache that is written."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as ir

from faults.graphs import constant, op, rewired
from faults.mutant import Mutant, Touched, after, instead
from graftline.passes import GRAFTS
from graftline.passes.anchors.anchors import with_role
from graftline.passes.grafts.layer_skip import LayerSkip

SKIP = GRAFTS["layer-skip"]
FIRST = {"recipe": "self-skip", "skip": "0"}
MLP = {"recipe": "self-skip", "skip": "mlp=1"}


def _another(real: Callable[[LayerSkip, ir.Model], None], touched: Touched) -> Any:
    """The block before the one that is meant loses its MLP."""

    def apply(self: LayerSkip, model: ir.Model) -> None:
        touched.count += 1
        real(LayerSkip(mlp="0"), model)

    return apply


def _halved(model: ir.Model) -> int:
    """What passes by the first block is half as large; what blocks add to it is not."""
    stream = with_role(model.graph, "embedding")[0].outputs[0]
    readers = list(stream.uses())
    half = op(model, readers[0][0], "Mul", [stream, constant(model, 0.5, np.float32)])
    return sum(rewired(node, index, half) for node, index in readers)


def _nothing_dropped(real: Any, touched: Touched) -> Any:
    """The block's caches stay, and are written with what it would have computed."""

    def dropped(self: LayerSkip, before: ir.Model) -> frozenset[str]:
        touched.count += 1
        return frozenset()

    return dropped


ROUTES = [
    Mutant("route-without-another-mlp", "layer-skip", "the MLP of another block is left out",
           "plain", "route", instead(SKIP, "apply", _another), MLP),
    Mutant("route-with-half-the-stream", "layer-skip", "a skipped block halves the stream",
           "plain", "route", after(SKIP, _halved), FIRST),
    Mutant("route-that-writes-a-skipped-cache", "layer-skip: dropped",
           "a skipped block writes keys and values",
           "plain", "route", instead(SKIP, "dropped", _nothing_dropped), FIRST),
]  # fmt: skip
