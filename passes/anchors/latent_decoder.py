"""What the inputs and the output of a decoder of latents are, told by types, shapes and operators.

Vocoders, the decoders of codecs and of VAEs, and super-resolution nets are one structure: few
latents (features, ids or pixels) become many elements of a waveform or an image.
"""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from graftline.facts import LatentDecoderFacts
from graftline.passes.anchors.roles import (
    FLOATS,
    INDICES,
    OnePass,
    Role,
    dims_of,
    inputs_of,
    mismatch,
    rank_of,
)
from graftline.passes.anchors.upsampling import upsampling
from graftline.passes.graph.mismatch import Mismatch
from graftline.roles import CONDITION, DECODED, LATENTS, LENGTHS

UPSAMPLES = frozenset({"ConvTranspose", "Resize", "Upsample", "DepthToSpace"})
"""Operators that make more elements along an axis of fewer; no decoder of text has one."""
_SAME_NUMBERS = frozenset(
    {"Cast", "Identity", "Unsqueeze", "Squeeze", "Reshape", "Slice", "Gather"}
)


@dataclass(frozen=True)
class _Main:
    """The latents: [B, C, N], [B, C, H, W], or ids [B, N] or [B, codebooks, N], of `codes`."""

    value: ir.Value
    axes: int
    channels: int
    codes: int = 0


def find_latent_decoder(graph: ir.Graph) -> OnePass | Mismatch:
    """Latents and what conditions them, and the waveform [B, C, T] or image [B, C, H, W] made of
    them; or why the graph is not such a decoder. Names do not count."""
    outputs = list(graph.outputs)
    if len(outputs) != 1 or outputs[0].dtype not in FLOATS or rank_of(outputs[0]) not in (3, 4):
        why = "its outputs are not one waveform [B, C, T] or image [B, C, H, W] of floats"
        return mismatch(why, outputs)
    if not any(node.op_type in UPSAMPLES for node in graph.all_nodes()):
        return mismatch(f"no node upsamples ({', '.join(sorted(UPSAMPLES))})", outputs)
    main = _main(inputs_of(graph))
    if isinstance(main, Mismatch):
        return main
    made = upsampling(graph, main.value, main.axes)
    if isinstance(made, Mismatch):
        return made
    rest = [v for v in inputs_of(graph) if v is not main.value]
    lengths = [v for v in rest if _is_length(v)]
    numbered = enumerate(v for v in rest if v not in lengths)
    roles = [Role(main.value, LATENTS, LATENTS)]
    roles += [Role(v, LENGTHS, LENGTHS) for v in lengths[:1]]
    roles += [Role(v, CONDITION, f"{CONDITION}.{place}") for place, v in numbered]
    if len(lengths) > 1:
        return mismatch("several inputs that could say how many latents each row has", lengths)
    facts = LatentDecoderFacts(
        made.axes, made.ratio, main.channels * (not main.codes), made.channels, main.codes
    )
    return OnePass(facts, tuple(roles), Role(outputs[0], DECODED, DECODED))


def _main(inputs: list[ir.Value]) -> _Main | Mismatch:
    """The latents among the inputs: floats of three or four dimensions, else ids."""
    floats = [v for v in inputs if v.dtype in FLOATS and rank_of(v) in (3, 4) and _is_long(v)]
    ids = [v for v in inputs if v.dtype in INDICES and rank_of(v) in (2, 3)]
    found = floats or ids
    if not found:
        return mismatch("no input is latents [B, C, N] or [B, C, H, W], or ids [B, N]", inputs)
    value = max(found, key=_channels)
    if odd := [v for v in found if v is not value and not _goes_along(v, value)]:
        why = f"which of the inputs is the latents is open: {value.name} is one, and another is"
        return mismatch(why, odd)
    if value in ids:
        tables = _tables(value)
        if not tables:
            return mismatch("ids that no table is read at", [value])
        return _Main(value, 1, 1, min(tables))
    if not _channels(value):
        return mismatch("the number of channels of the latents is not fixed", [value])
    rank = rank_of(value)
    assert rank is not None
    return _Main(value, rank - 2, _channels(value))


def _channels(value: ir.Value) -> int:
    dims = dims_of(value)
    return dims[1] if len(dims) > 2 and isinstance(dims[1], int) else 0


def _is_long(value: ir.Value) -> bool:
    """Whether it may have more than one place: a vector for the whole output has not."""
    return any(d != 1 for d in dims_of(value)[2:])


def _goes_along(value: ir.Value, main: ir.Value) -> bool:
    """Whether an input has a place for each latent: a fundamental frequency beside a
    spectrogram."""
    return dims_of(value)[2:] == dims_of(main)[2:] and _channels(value) < _channels(main)


def _is_length(value: ir.Value) -> bool:
    """Integers [B] that no table is read at."""
    return value.dtype in INDICES and rank_of(value) == 1 and not _tables(value)


def _tables(value: ir.Value) -> list[int]:
    """The rows of the tables that are read at these ids."""
    found: list[int] = []
    todo, seen = [value], {value}
    while todo:
        for node, place in todo.pop().uses():
            table = node.inputs[0]
            if node.op_type == "Gather" and place == 1 and table is not None:
                rows = dims_of(table)[:1]
                found += [r for r in rows if isinstance(r, int) and table.const_value is not None]
            elif node.op_type in _SAME_NUMBERS and place == 0:
                fresh = [v for v in node.outputs if v not in seen]
                seen.update(fresh)
                todo += fresh
    return found
