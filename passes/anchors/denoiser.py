"""What the inputs and the output of a denoiser are, told by their types and shapes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import onnx_ir as ir

from graftline.passes.graph.mismatch import Mismatch

FLOATS = (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16)


@dataclass(frozen=True)
class Denoiser:
    """A noisy sample [B, C, H, W] and its time step, with what else conditions it, and the
    prediction of the sample's height and width."""

    sample: ir.Value
    timestep: ir.Value
    conditions: tuple[ir.Value, ...]
    prediction: ir.Value


def find_denoiser(graph: ir.Graph) -> Denoiser | Mismatch:
    """The parts of a denoiser; or why the graph is none. Names do not count."""
    inputs = [v for v in graph.inputs if v.name not in graph.initializers]
    samples = [v for v in inputs if _rank(v) == 4 and v.dtype in FLOATS]
    if len(samples) != 1:
        why = f"{len(samples)} inputs [B, C, H, W] of floats, one is the sample"
        return _mismatch(why, samples)
    (sample,) = samples
    if not isinstance(_dims(sample)[1], int):
        return _mismatch("the number of the sample's channels is not fixed", [sample])
    steps = [v for v in inputs if _rank(v) in (0, 1)]
    if len(steps) != 1:
        why = f"{len(steps)} inputs of a number, or one for each sample, one is the time step"
        return _mismatch(why, steps)
    predictions = [v for v in graph.outputs if _rank(v) == 4 and v.dtype in FLOATS]
    if len(predictions) != 1 or len(graph.outputs) != 1:
        why = f"{len(graph.outputs)} outputs, one [B, C, H, W] is the prediction"
        return _mismatch(why, list(graph.outputs))
    (prediction,) = predictions
    if any(a != b for a, b in zip(_dims(prediction)[2:], _dims(sample)[2:], strict=True)):
        why = "the prediction has another height or width than the sample"
        return _mismatch(why, predictions)
    rest = [v for v in inputs if v not in (sample, steps[0])]
    if odd := [v for v in rest if v.dtype not in FLOATS or _rank(v) not in (2, 3)]:
        return _mismatch("inputs that are no vectors of floats to condition on", odd)
    return Denoiser(sample, steps[0], tuple(rest), prediction)


def _dims(value: ir.Value) -> tuple[int | str | None, ...]:
    shape = value.shape
    return () if shape is None else tuple(d if isinstance(d, int) else d.value for d in shape)


def _rank(value: ir.Value) -> int | None:
    return None if value.shape is None else len(value.shape)


def _mismatch(reason: str, values: Sequence[ir.Value]) -> Mismatch:
    """With the inputs or outputs that say so, by name and shape."""
    first, *others = [f"{v.name} {list(_dims(v))}" for v in values] or ["the graph"]
    return Mismatch(first, reason, tuple(others))
