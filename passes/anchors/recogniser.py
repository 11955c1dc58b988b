"""What the inputs and outputs of a recogniser are that writes a text in one pass, told by types,
shapes and what its number of positions follows from.

Paraformer (arXiv 2206.08317) counts tokens by integrate-and-fire and decodes that many positions
together; CPPD (arXiv 2307.12270) decodes a fixed number of placeholders and says how many count.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import onnx_ir as ir

from graftline.errors import CannotEvaluate, NotApplicable
from graftline.facts import RecogniserFacts
from graftline.passes.anchors.denoiser import AUXILIARY
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
from graftline.passes.anchors.upsampling import LENGTHS as SIZES
from graftline.passes.anchors.upsampling import measure, opened
from graftline.passes.graph.mismatch import Mismatch
from graftline.roles import COUNTS, LENGTHS, SCORES, SIGNAL


@dataclass(frozen=True)
class Heard:
    """The signal, of so many `channels`, and its rows' lengths where they are an input."""

    roles: tuple[Role, ...]
    channels: int


def find_signal(inputs: Sequence[ir.Value]) -> Heard | Mismatch:
    """One signal [B, T, C] or [B, C, H, W] and no more than its rows' lengths [B]; or why the
    inputs are not these."""
    signals = [v for v in inputs if v.dtype in FLOATS and rank_of(v) in (3, 4)]
    lengths = [v for v in inputs if v.dtype in INDICES and rank_of(v) == 1]
    if odd := [v for v in inputs if v not in (*signals, *lengths)]:
        return mismatch("an input that is neither a signal nor its rows' lengths", odd)
    if len(signals) != 1 or len(lengths) > 1:
        why = "its inputs are not one signal [B, T, C] or [B, C, H, W] and the rows' lengths"
        return mismatch(why, inputs)
    channels = dims_of(signals[0])[2 if rank_of(signals[0]) == 3 else 1]
    if not isinstance(channels, int):
        return mismatch("the number of the signal's channels is not fixed", signals)
    roles = [Role(signals[0], SIGNAL, SIGNAL), *(Role(v, LENGTHS, LENGTHS) for v in lengths)]
    return Heard(tuple(roles), channels)


def find_recogniser(graph: ir.Graph) -> OnePass | Mismatch:
    """A signal and its rows' lengths, and the scores [B, U, V] of as many positions as the graph
    counts, or as it has placeholders; or why it is no such graph. Names do not count."""
    heard = find_signal(inputs_of(graph))
    if isinstance(heard, Mismatch):
        return heard
    scores = [v for v in graph.outputs if v.dtype in FLOATS and rank_of(v) == 3]
    counts = [v for v in graph.outputs if v.dtype in INDICES and rank_of(v) == 1]
    if len(scores) != 1 or len(counts) > 1:
        why = "its outputs are not the scores [B, U, V] of positions, and how many each row has"
        return mismatch(why, graph.outputs)
    vocabulary = dims_of(scores[0])[2]
    if not isinstance(vocabulary, int) or vocabulary < 2:
        return mismatch("the number of tokens is not fixed", scores)
    positions = _positions(graph, heard.roles[0].value, scores[0])
    if isinstance(positions, Mismatch):
        return positions
    beside = [v for v in graph.outputs if v not in (*scores, *counts)]
    others = [Role(v, COUNTS, COUNTS) for v in counts]
    others += [Role(v, AUXILIARY, f"{AUXILIARY}.{n}") for n, v in enumerate(beside)]
    facts = RecogniserFacts(vocabulary, heard.channels, positions)
    return OnePass(facts, heard.roles, Role(scores[0], SCORES, SCORES), tuple(others))


def _positions(graph: ir.Graph, signal: ir.Value, scores: ir.Value) -> int | Mismatch:
    """How many positions are scored whatever the size of the signal; 0: that depends on numbers."""
    places = list(graph.inputs).index(signal), list(graph.outputs).index(scores)
    try:
        model = opened(graph)
        ends = model.graph.inputs[places[0]], model.graph.outputs[places[1]]
        shapes = [measure(model.graph, ends[0], size).of(ends[1]) for size in SIZES]
    except (NotApplicable, CannotEvaluate) as error:
        return mismatch(f"its shapes cannot be measured: {error}", [signal])
    known = {shape[1] for shape in shapes if shape is not None}
    if not known:
        return 0
    if len(known) > 1 or None in shapes:
        why = "it scores more places of a longer signal: an encoder, or CTC, is not hosted yet"
        return mismatch(why, [scores])
    return known.pop()
