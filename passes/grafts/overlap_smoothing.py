"""overlap-smoothing: a stream of a decoder whose elements depend on all latents.

Chunkwise inference with overlap smoothing, as of X-VC (arXiv 2604.12456): each window of latents is
decoded by itself, and neighbours are cross-faded where they overlap.
"""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from graftline.errors import CannotEvaluate, NotApplicable
from graftline.facts import LatentDecoderFacts, read_facts
from graftline.passes.anchors.roles import dims_of
from graftline.passes.anchors.upsampling import LENGTHS, measure
from graftline.passes.graph.ports import input_of, output_of
from graftline.passes.pipeline.graft import Graft
from graftline.receptive_field import read_fields
from graftline.roles import DECODED, LATENTS
from graftline.smoothing import Smoothing, read_smoothing, write_smoothing


@dataclass(frozen=True)
class OverlapSmoothing(Graft):
    """Streams a decoder whose elements depend on all latents, which `window` refuses: windows of
    `size` latents that share `overlap` with their neighbours, cross-faded there.

    What is streamed differs from the whole by design; by how much is measured. The graph stays as
    it is.
    """

    size: int = 64
    overlap: int = 16

    def requires(self, model: ir.Model) -> None:
        facts = read_facts(model)
        if not isinstance(facts, LatentDecoderFacts):
            raise NotApplicable(f"{self.name()} is for decoders of latents, not a {facts.kind}")
        if facts.axes != 1:
            raise NotApplicable(f"{self.name()}: a stream has one axis, and an image has two")
        if read_fields(model) or read_smoothing(model):
            raise NotApplicable(f"this graph has windows already; name {self.name()} or window")
        if not 1 <= self.overlap <= self.size // 2:
            raise NotApplicable(
                f"{self}: windows of {self.size} may overlap by 1 to {self.size // 2} latents"
            )
        latents, output = input_of(model, LATENTS), output_of(model, DECODED)
        assert latents is not None
        assert output is not None
        if isinstance(long := dims_of(latents)[-1], int):
            told = f"the latents are {long} long in this graph; export it with any length"
            raise NotApplicable(told, [latents.name or ""])
        count = LENGTHS[0]
        try:
            made = measure(model.graph, latents, count).of(output)
        except CannotEvaluate as error:
            raise NotApplicable(f"its shapes cannot be measured: {error}") from error
        if made is None or made[-1] != facts.upsampling * count:
            have = "a length that depends on numbers" if made is None else f"{made[-1]} elements"
            raise NotApplicable(
                f"{self.name()}: {count} latents make {have}, not {facts.upsampling * count}: "
                "where windows lie in the whole is open", [output.name or ""],
            )  # fmt: skip

    def apply(self, model: ir.Model) -> None:
        facts, latents = read_facts(model), input_of(model, LATENTS)
        output = output_of(model, DECODED)
        assert isinstance(facts, LatentDecoderFacts)
        assert latents is not None
        assert output is not None
        axes = len(dims_of(latents)) - 1, len(dims_of(output)) - 1
        write_smoothing(model, Smoothing(*axes, facts.upsampling, self.size, self.overlap))
