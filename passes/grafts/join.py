"""join: the sample, its scaling and the decoder as one graph; or a path and its decoder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir

from graftline.errors import NotApplicable
from graftline.evaluate import Feed
from graftline.facts import DenoiserFacts, Facts, read_facts
from graftline.owners import TARGET
from graftline.passes.anchors.denoiser import DECODER
from graftline.passes.graph.cut import drop_ports, hand_over
from graftline.passes.graph.emit import Emit
from graftline.passes.graph.ports import input_of, output_of, port_of, value_of
from graftline.passes.laws.paths import MADE, decoder_feed
from graftline.passes.laws.sampled import DECODER_LATENTS, latents
from graftline.passes.pipeline.graft import Evaluate, Graft
from graftline.ports import Port, read_ports, write_ports
from graftline.roles import COUNTS, DENOISED, LATENTS, LENGTHS, PAST, STATES

SOURCES: tuple[Mapping[str, str], ...] = (
    {LATENTS: DENOISED}, {LATENTS: STATES, LENGTHS: COUNTS},
)  # fmt: skip
"""What the decoder's inputs are made of, by their roles: a sample; or the states of a path, and how
many each row has."""


@dataclass(frozen=True)
class Join(Graft):
    """Decodes the sample in the same graph: noise in, an image out, with the scaling of the latents
    between. Or the states of a path: speech in, speech out.

    It adds no input. Neutral: the decoder, called on the scaled sample, or on the states.
    """

    def requires(self, model: ir.Model) -> None:
        source, taken = _source(model), input_of(model, LATENTS, DECODER)
        kind = read_facts(model).kind
        if source is None:
            before = "collapse-loop" if kind == "denoiser" else "best-path"
            what = "a sample" if kind == "denoiser" else "a path"
            raise NotApplicable(f"join needs {what} to decode; put {before} before it")
        if taken is None:
            raise NotApplicable(
                f"join needs a decoder beside the {kind}; name its graph in the spec: [decoder]"
            )
        if port_of(model, PAST) is not None:
            raise NotApplicable(
                "join: the next chunk needs this one's sample; decode their samples"
            )
        made = output_of(model, source[LATENTS])
        assert made is not None
        what = "sample" if source[LATENTS] == DENOISED else source[LATENTS]
        fit(made, taken, f"join: the {what}", "the decoder's latents")

    def apply(self, model: ir.Model) -> None:
        facts, source = read_facts(model), _source(model)
        assert source is not None
        same: dict[str, str | int] = {}
        for role, own in source.items():
            made, taken = output_of(model, own), input_of(model, role, DECODER)
            assert made is not None
            assert taken is not None
            pairs = zip(taken.shape or (), made.shape or (), strict=True)
            same |= {str(d): s if isinstance(s, int) else str(s) for d, s in pairs}
            hand_over(taken, self._as_taken(model.graph, made, taken, facts))
        _own_ports(model, same)
        drop_ports(model, [source[LATENTS], *_inputs(source)])
        model.graph.sort()

    def _as_taken(
        self, graph: ir.Graph, made: ir.Value, taken: ir.Value, facts: Facts
    ) -> ir.Value:
        """An output as the decoder takes it: a sample scaled, lengths in its type of integers."""
        if isinstance(facts, DenoiserFacts):
            return self._scaled(graph, made, facts)
        if made.dtype == taken.dtype or taken.dtype is None:
            return made
        return Emit(graph, self.name()).op("Cast", [made], to=taken.dtype.value)

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
        source = _source(before)
        assert source is not None
        made = {name for name, role in MADE.items() if output_of(before, role, DECODER) is not None}
        return frozenset({source[LATENTS], *_inputs(source), *made})

    def reference(self, before: ir.Model, feed: Feed, evaluate: Evaluate) -> Feed:
        """The decoder called on what the host made."""
        facts, source = read_facts(before), _source(before)
        assert source is not None
        made = evaluate(before, feed)
        if isinstance(facts, DenoiserFacts):
            given = {DECODER_LATENTS: latents(made[DENOISED], facts)}
        else:
            given = {n: v.astype(feed[n].dtype) for n, v in decoder_feed(made).items()}
        decoded = evaluate(before, feed | given)
        return made | {role: decoded[name] for name, role in MADE.items() if name in decoded}

    def neutral(self, feed: Feed, after: ir.Model) -> Feed:
        inputs = {v.name for v in after.graph.inputs}
        return {name: array for name, array in feed.items() if name in inputs}


def _source(model: ir.Model) -> Mapping[str, str] | None:
    """What the decoder's inputs are made of, by their roles; None where the host makes it not."""
    made = {p.role for p in read_ports(model) if (p.direction, p.owner) == ("out", TARGET)}
    return next((source for source in SOURCES if made.issuperset(source.values())), None)


def _inputs(source: Mapping[str, str]) -> list[str]:
    """The names of the decoder's inputs that are made."""
    return [f"{DECODER}.{role}" for role in source]


def _own_ports(model: ir.Model, same: Mapping[str, str | int]) -> None:
    """What the decoder makes becomes the target's, and its symbols those of the sample."""
    made: dict[Port, Port] = {}
    for port in [p for p in read_ports(model) if p.owner == DECODER]:
        value = value_of(model, port)
        shape = tuple(d if isinstance(d, int) else same.get(d, d) for d in port.shape)
        value.shape = ir.Shape(list(shape))
        made[port] = replace(port, shape=shape)
        if port.name in MADE:
            value.name = port.role
            made[port] = replace(made[port], name=port.role, owner=TARGET)
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
