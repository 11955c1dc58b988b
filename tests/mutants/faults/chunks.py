"""Chunks drawn behind other chunks than the one before, or with other noise."""

from __future__ import annotations

from typing import Any

import onnx_ir as ir

from faults.graphs import nodes
from faults.mutant import Mutant, Touched, after, instead
from graftline.passes import GRAFTS
from graftline.runtimes.one_pass import engine
from graftline.runtimes.one_pass.chunked import Chunked


def _latents_swapped(model: ir.Model) -> int:
    """The network is given the latents of both chunks in the other order."""
    found = [n for n in nodes(model, "Concat") if n.inputs[1] is _input(model, "latents")]
    for node in found:
        first = node.inputs[0]
        node.replace_input_with(0, node.inputs[1])
        node.replace_input_with(1, first)
    return len(found)


def _not_noised(model: ir.Model) -> int:
    """The chunk before is clean, whatever the network is told."""
    found = [n for n in nodes(model, "Add") if n.inputs[0] is _input(model, "past")]
    for node in found:
        node.outputs[0].replace_all_uses_with(_input(model, "past"))
    return len(found)


def _always_second(model: ir.Model) -> int:
    """A first chunk is taken from behind itself."""
    (split,) = nodes(model, "Split")
    for node in split.outputs[1].consumers():
        node.replace_input_with(2, split.outputs[1])
    return len(split.outputs[1].consumers())


def _input(model: ir.Model, name: str) -> ir.Value:
    return next(v for v in model.graph.inputs if v.name == name)


def _forgotten(real: Any, touched: Touched) -> Any:
    """Every piece begins anew."""

    def stream(self: Chunked, pieces: Any) -> Any:
        for piece in pieces:
            touched.count += 1
            yield from real(self, [piece])

    return stream


def _same_noise(real: Any, touched: Touched) -> Any:
    """All chunks have the noise of the first."""

    def seed_of(seed: int, number: int) -> int:
        touched.count += number > 0
        return real(seed, 0)

    return seed_of


ON, GRAFT = {"recipe": "music2latent2", "spec": "chunks"}, GRAFTS["carry-chunk"]
CHUNKS = [
    Mutant("chunk-latents-swapped", "carry-chunk", "latents of both chunks change places",
           "chunked", "neutral", after(GRAFT, _latents_swapped), ON),
    Mutant("chunk-before-clean", "carry-chunk", "the chunk before gets no noise", "chunked",
           "neutral", after(GRAFT, _not_noised), ON),
    Mutant("first-chunk-from-behind", "carry-chunk", "a first chunk is taken from behind itself",
           "chunked", "neutral", after(GRAFT, _always_second), ON),
    Mutant("chunks-forgotten", "chunked: stream", "every piece begins anew", "chunked", "chunks",
           instead(Chunked, "stream", _forgotten), ON),
    Mutant("chunks-of-one-noise", "engine: seed_of", "all chunks have one noise", "chunked",
           "chunks", instead(engine, "seed_of", _same_noise), ON),
]  # fmt: skip
