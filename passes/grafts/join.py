"""join: the sample, its scaling and the decoder as one graph."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir

from graftline.errors import NotApplicable
from graftline.evaluate import Feed
from graftline.facts import DenoiserFacts, read_facts
from graftline.owners import TARGET
from graftline.passes.anchors.denoiser import DECODER
from graftline.passes.graph.cut import drop_ports, hand_over
from graftline.passes.graph.emit import Emit
from graftline.passes.graph.ports import input_of, output_of, value_of
from graftline.passes.laws.sampled import DECODER_LATENTS, DECODER_OUTPUT, latents
from graftline.passes.pipeline.graft import Evaluate, Graft
from graftline.ports import Port, read_ports, write_ports
from graftline.roles import DECODED, DENOISED, LATENTS


@dataclass(frozen=True)
class Join(Graft):
    """Decodes the sample in the same graph: noise in, an image out, with the scaling of the latents
    between.

    It adds no input. Neutral: the decoder, called on the scaled sample.
    """

    def requires(self, model: ir.Model) -> None:
        sample, taken = output_of(model, DENOISED), input_of(model, LATENTS, DECODER)
        if sample is None:
            raise NotApplicable("join needs a sample to decode; put collapse-loop before it")
        if taken is None:
            raise NotApplicable(
                "join needs a decoder beside the denoiser; name its graph in the spec: [decoder]"
            )
        fit(sample, taken, "join: the sample", "the decoder's latents")

    def apply(self, model: ir.Model) -> None:
        facts = read_facts(model)
        assert isinstance(facts, DenoiserFacts)
        sample, taken = output_of(model, DENOISED), input_of(model, LATENTS, DECODER)
        assert sample is not None
        assert taken is not None
        pairs = zip(taken.shape or (), sample.shape or (), strict=True)
        same = {str(d): s if isinstance(s, int) else str(s) for d, s in pairs}
        hand_over(taken, self._scaled(model.graph, sample, facts))
        _own_ports(model, same)
        drop_ports(model, [DENOISED, DECODER_LATENTS])
        model.graph.sort()

    def _scaled(self, graph: ir.Graph, sample: ir.Value, facts: DenoiserFacts) -> ir.Value:
        """The latents of a sample."""
        assert sample.dtype is not None
        emit, kind, scaled = Emit(graph, self.name()), sample.dtype.numpy(), sample
        if facts.scale != 1:
            by = emit.const("latents.scale", np.asarray(facts.scale, kind))
            scaled = emit.op("Div", [scaled, by])
        if facts.shift:
            by = emit.const("latents.shift", np.asarray(facts.shift, kind))
            scaled = emit.op("Add", [scaled, by])
        return scaled

    def dropped(self, before: ir.Model) -> frozenset[str]:
        return frozenset({DENOISED, DECODER_LATENTS, DECODER_OUTPUT})

    def reference(self, before: ir.Model, feed: Feed, evaluate: Evaluate) -> Feed:
        """The decoder called on the host's sample."""
        facts = read_facts(before)
        assert isinstance(facts, DenoiserFacts)
        made = evaluate(before, feed)
        given = feed | {DECODER_LATENTS: latents(made[DENOISED], facts)}
        return made | {DECODED: evaluate(before, given)[DECODER_OUTPUT]}

    def neutral(self, feed: Feed, after: ir.Model) -> Feed:
        return {name: array for name, array in feed.items() if name != DECODER_LATENTS}


def _own_ports(model: ir.Model, same: Mapping[str, str | int]) -> None:
    """The decoder's image becomes the target's, and its symbols those of the sample."""
    made: dict[Port, Port] = {}
    for port in [p for p in read_ports(model) if p.owner == DECODER]:
        value = value_of(model, port)
        shape = tuple(d if isinstance(d, int) else same.get(d, d) for d in port.shape)
        value.shape = ir.Shape(list(shape))
        made[port] = replace(port, shape=shape)
        if port.role == DECODED:
            value.name, made[port] = DECODED, replace(made[port], name=DECODED, owner=TARGET)
    write_ports(model, [made.get(p, p) for p in read_ports(model)])


def fit(one: ir.Value, other: ir.Value, what: str, where: str) -> None:
    """Raise NotApplicable unless one value can stand where another is: of its type, and of its
    sizes where both have a number."""
    sizes = [list(v.shape or ()) for v in (one, other)]
    numbers = [
        (a, b) for a, b in zip(*sizes, strict=False) if isinstance(a, int) and isinstance(b, int)
    ]
    fits = len(sizes[0]) == len(sizes[1]) and all(a == b for a, b in numbers)
    if not fits or one.dtype != other.dtype:
        told = [f"{v.dtype.name if v.dtype else '?'} {list(map(str, s))}".replace("'", "")
                for v, s in zip((one, other), sizes, strict=True)]  # fmt: skip
        raise NotApplicable(f"{what} {told[0]} do not fit {where} {told[1]}", [other.name or ""])
