"""What the inputs and outputs of a denoiser are, told by their types and shapes, or declared."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from graftline.facts import DenoiserFacts
from graftline.owners import TARGET
from graftline.passes.anchors.roles import (
    FLOATS,
    OnePass,
    Role,
    declared_role,
    dims_of,
    inputs_of,
    mismatch,
    owner_of,
    rank_of,
)
from graftline.passes.graph.mismatch import Mismatch
from graftline.roles import CONDITION, DECODED, LATENTS, SAMPLE

TIMESTEP, PREDICTION = "timestep", "prediction"
UNCONDITIONAL = "unconditional"
"""The conditions of the other branch of a guided prediction."""
AUXILIARY = "auxiliary"
"""Outputs beside the prediction."""
DECODER, REPLACEMENT = "decoder", "replacement"
"""Owners of graphs that lie beside a denoiser, in one file with it."""


def find_denoiser(graph: ir.Graph) -> OnePass | Mismatch:
    """A noisy sample [B, C, H, W] and its time step, with what else conditions it, and the
    prediction of the sample's height and width; or why the graph is not a denoiser. Names do not
    count; roles that a spec has declared do. Graphs beside it are decoders of its samples."""
    inputs = [v for v in inputs_of(graph) if owner_of(v) == TARGET]
    outputs = [v for v in graph.outputs if owner_of(v) == TARGET]
    sample = _sample(inputs)
    if isinstance(sample, Mismatch):
        return sample
    channels, height, width = dims_of(sample)[1:]
    if not isinstance(channels, int):
        return mismatch("the number of the sample's channels is not fixed", [sample])
    step = _timestep(inputs)
    if isinstance(step, Mismatch):
        return step
    prediction = _prediction(outputs)
    if isinstance(prediction, Mismatch):
        return prediction
    if dims_of(prediction)[2:] != (height, width):
        why = "the prediction and the sample differ in height or width"
        return mismatch(why, [prediction])
    rest = [v for v in inputs if v not in (sample, step)]
    if odd := [v for v in rest if not _conditions(v)]:
        return mismatch("inputs that are not vectors of floats, as conditions are", odd)
    beside = [_decoder(graph, owner) for owner in (DECODER, REPLACEMENT)]
    if wrong := [found for found in beside if isinstance(found, Mismatch)]:
        return wrong[0]
    height, width = (d if isinstance(d, int) else 0 for d in (height, width))
    roles = [Role(sample, SAMPLE, SAMPLE), Role(step, TIMESTEP, TIMESTEP)]
    roles += [Role(v, CONDITION, f"{CONDITION}.{place}") for place, v in enumerate(rest)]
    more = [v for v in outputs if v is not prediction]
    others = [Role(v, AUXILIARY, f"{AUXILIARY}.{place}") for place, v in enumerate(more)]
    for ins, outs in (found for found in beside if not isinstance(found, Mismatch)):
        roles, others = [*roles, *ins], [*others, *outs]
    output = Role(prediction, PREDICTION, PREDICTION)
    return OnePass(DenoiserFacts(channels, height, width), tuple(roles), output, tuple(others))


def _declared(values: Sequence[ir.Value], role: str) -> ir.Value | None:
    return next((v for v in values if declared_role(v) == role), None)


def _sample(inputs: Sequence[ir.Value]) -> ir.Value | Mismatch:
    found = [v for v in inputs if rank_of(v) == 4 and v.dtype in FLOATS]
    if (one := _declared(inputs, SAMPLE)) is not None:
        return one if one in found else mismatch("the sample is not floats [B, C, H, W]", [one])
    found = [v for v in found if not declared_role(v)]
    if len(found) != 1:
        why = f"{len(found)} inputs [B, C, H, W] of floats; it must be one, the sample"
        return mismatch(why, found)
    return found[0]


def _timestep(inputs: Sequence[ir.Value]) -> ir.Value | Mismatch:
    found = [v for v in inputs if rank_of(v) in (0, 1)]
    if (one := _declared(inputs, TIMESTEP)) is not None:
        return one if one in found else mismatch("the time step has two dimensions or more", [one])
    found = [v for v in found if not declared_role(v)]
    if len(found) != 1:
        why = f"{len(found)} inputs of one number, or one per sample; it must be one, the time step"
        return mismatch(why, found)
    return found[0]


def _prediction(outputs: Sequence[ir.Value]) -> ir.Value | Mismatch:
    found = [v for v in outputs if rank_of(v) == 4 and v.dtype in FLOATS]
    if (one := _declared(outputs, PREDICTION)) is not None:
        return one if one in found else mismatch("the prediction is not floats [B, C, H, W]", [one])
    if len(found) != 1 or len(outputs) != 1:
        why = f"{len(outputs)} outputs; it must be one, the prediction [B, C, H, W]"
        return mismatch(why, outputs)
    return found[0]


def _conditions(value: ir.Value) -> bool:
    """Whether an input is a vector of floats, or was declared to be a condition."""
    vector = value.dtype in FLOATS and rank_of(value) in (2, 3)
    return vector or declared_role(value) == CONDITION


def _decoder(graph: ir.Graph, owner: str) -> tuple[list[Role], list[Role]] | Mismatch:
    """The inputs and the output of a graph beside the denoiser: latents [B, C, H, W] that it makes
    an image [B, C, H, W] of; nothing where there is no such graph."""
    inputs = [v for v in inputs_of(graph) if owner_of(v) == owner]
    outputs = [v for v in graph.outputs if owner_of(v) == owner]
    if not outputs:
        return [], []
    found = [v for v in inputs if rank_of(v) == 4 and v.dtype in FLOATS]
    latents = _declared(inputs, LATENTS) or (found[0] if len(found) == 1 else None)
    if latents is None or len(outputs) != 1 or rank_of(outputs[0]) != 4:
        why = f"the {owner} does not make one image [B, C, H, W] of latents [B, C, H, W]"
        return mismatch(why, [*inputs, *outputs])
    rest = [v for v in inputs if v is not latents]
    ins = [Role(latents, LATENTS, f"{owner}.{LATENTS}", owner)]
    ins += [Role(v, CONDITION, f"{owner}.{CONDITION}.{n}", owner) for n, v in enumerate(rest)]
    return ins, [Role(outputs[0], DECODED, f"{owner}.{DECODED}", owner)]
