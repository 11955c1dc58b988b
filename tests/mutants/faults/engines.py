"""Engines of hosts that run once: other numbers than the host's, windows that keep too much."""

from __future__ import annotations

import onnx_ir as ir

from faults.fields import written
from faults.graphs import nodes
from faults.mutant import Mutant, after
from graftline.passes import GRAFTS

ENGINE = {"target": "trt-rtx:sm89", "dtype": "fp16", "engine": "size.N=14..64"}
WINDOWS = {**ENGINE, "passes": "window{size=64}"}


def _larger(model: ir.Model) -> int:
    """The first convolution's weights are 5 % larger."""
    found = [v for n in nodes(model, "Conv")[:1] for v in n.inputs[1:2] if v is not None]
    for value in found:
        assert value.const_value is not None
        numbers = value.const_value.numpy()
        value.const_value = ir.tensor((numbers * 1.05).astype(numbers.dtype), name=value.name)
    return len(found)


ENGINES = [
    Mutant("engine-of-larger-weights", "lower-tensorrt", "a weight is 5 % larger", "vocoder",
           "neutral", after(GRAFTS["lower-tensorrt"], _larger), ENGINE),
    Mutant("engine-windows-without-an-end", "window", "a window is right up to its end", "vocoder",
           "windowed", after(GRAFTS["window"], written(right=lambda f: 0)), WINDOWS),
]  # fmt: skip
