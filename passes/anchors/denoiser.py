"""What the inputs and the output of a denoiser are, told by their types and shapes."""

from __future__ import annotations

import onnx_ir as ir

from graftline.facts import DenoiserFacts
from graftline.passes.anchors.roles import (
    FLOATS,
    OnePass,
    Role,
    dims_of,
    inputs_of,
    mismatch,
    rank_of,
)
from graftline.passes.graph.mismatch import Mismatch

SAMPLE, TIMESTEP, CONDITION, PREDICTION = "sample", "timestep", "condition", "prediction"


def find_denoiser(graph: ir.Graph) -> OnePass | Mismatch:
    """A noisy sample [B, C, H, W] and its time step, with what else conditions it, and the
    prediction of the sample's height and width; or why the graph is not a denoiser. Names do not
    count."""
    inputs = inputs_of(graph)
    samples = [v for v in inputs if rank_of(v) == 4 and v.dtype in FLOATS]
    if len(samples) != 1:
        why = f"{len(samples)} inputs [B, C, H, W] of floats; it must be one, the sample"
        return mismatch(why, samples)
    (sample,) = samples
    channels, height, width = dims_of(sample)[1:]
    if not isinstance(channels, int):
        return mismatch("the number of the sample's channels is not fixed", [sample])
    steps = [v for v in inputs if rank_of(v) in (0, 1)]
    if len(steps) != 1:
        why = f"{len(steps)} inputs of one number, or one per sample; it must be one, the time step"
        return mismatch(why, steps)
    predictions = [v for v in graph.outputs if rank_of(v) == 4 and v.dtype in FLOATS]
    if len(predictions) != 1 or len(graph.outputs) != 1:
        why = f"{len(graph.outputs)} outputs; it must be one, the prediction [B, C, H, W]"
        return mismatch(why, graph.outputs)
    (prediction,) = predictions
    if dims_of(prediction)[2:] != (height, width):
        why = "the prediction and the sample differ in height or width"
        return mismatch(why, predictions)
    rest = [v for v in inputs if v not in (sample, steps[0])]
    if odd := [v for v in rest if v.dtype not in FLOATS or rank_of(v) not in (2, 3)]:
        return mismatch("inputs that are not vectors of floats, as conditions are", odd)
    size = (d if isinstance(d, int) else 0 for d in (height, width))
    roles = [Role(sample, SAMPLE, SAMPLE), Role(steps[0], TIMESTEP, TIMESTEP)]
    roles += [Role(v, CONDITION, f"{CONDITION}.{place}") for place, v in enumerate(rest)]
    output = Role(prediction, PREDICTION, PREDICTION)
    return OnePass(DenoiserFacts(channels, *size), tuple(roles), output)
