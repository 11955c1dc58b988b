"""window: the receptive field of a decoder, by which its runtime decodes in windows.

The field is found on the graph, node by node, in whole elements (Araujo, Norris and Sim, "Computing
receptive fields of convolutional neural networks", Distill 2019, with transposed convolutions,
resizing and pads at the phases that they have).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import onnx_ir as ir

from graftline.errors import NotApplicable
from graftline.facts import LatentDecoderFacts, read_facts
from graftline.passes.anchors.fields.find import part_from, receptive_fields
from graftline.passes.anchors.fields.span import Blocked
from graftline.passes.anchors.roles import dims_of
from graftline.passes.graph.ports import input_of, output_of
from graftline.passes.pipeline.graft import Graft
from graftline.receptive_field import ReceptiveField, read_fields, write_fields
from graftline.roles import DECODED, LATENTS


@dataclass(frozen=True)
class Window(Graft):
    """Decodes in windows that overlap by exactly the receptive field: the whole's output, in the
    memory of one window. `size` are the latents of a window along each axis (0: three times the
    overlap)."""

    size: int = 0

    def requires(self, model: ir.Model) -> None:
        if not isinstance(facts := read_facts(model), LatentDecoderFacts):
            raise NotApplicable(f"{self.name()} is for decoders of latents, not a {facts.kind}")
        if read_fields(model):
            raise NotApplicable(f"this graph has windows already; name {self.name()} once")
        self._fields(model)

    def apply(self, model: ir.Model) -> None:
        write_fields(model, self._fields(model))

    def _fields(self, model: ir.Model) -> tuple[ReceptiveField, ...]:
        """Along each axis. Raises NotApplicable where one is infinite, or `size` is too small."""
        facts, latents, output = (
            read_facts(model),
            input_of(model, LATENTS),
            output_of(model, DECODED),
        )
        assert isinstance(facts, LatentDecoderFacts)
        assert latents is not None
        assert output is not None
        dims = dims_of(latents)
        axes = range(len(dims) - facts.axes, len(dims))
        if fixed := [a for a in axes if isinstance(dims[a], int)]:
            told = f"the latents are {dims[fixed[0]]} long in this graph; export it with any length"
            raise NotApplicable(told, [latents.name or ""])
        part = part_from(latents, output)
        known = {i: d for i, d in enumerate(dims) if isinstance(d, int)}
        found = part if isinstance(part, Blocked) else receptive_fields(part, output, axes, known)
        if isinstance(found, Blocked):
            raise infinite(found)
        return sized(found, self.size)


def infinite(found: Blocked) -> NotApplicable:
    """The refusal of a graph whose elements depend on all latents."""
    why = f"an element depends on all latents, and no window can give it: {found.reason}"
    return NotApplicable(why, [found.node])


def sized(fields: tuple[ReceptiveField, ...], size: int) -> tuple[ReceptiveField, ...]:
    """With the size of windows, a multiple of each step. Raises NotApplicable for one that is too
    small."""
    chosen = [replace(f, size=size // f.step * f.step if size else f.usual) for f in fields]
    if short := [f for f in chosen if f.size < f.least]:
        needs = f"{short[0].before} latents in front and {short[0].behind} behind an element count"
        raise NotApplicable(f"size={size}: {needs}; windows are at least {short[0].least} long")
    return tuple(chosen)
