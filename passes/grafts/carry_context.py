"""carry-context: what a causal decoder still reads of the latents before, as inputs and outputs.

Streaming convolutions with their state outside of the graph (Rybakov et al., "Streaming keyword
spotting on mobile devices", arXiv 2005.06720).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from graftline.errors import NotApplicable
from graftline.evaluate import Array, Feed
from graftline.facts import LatentDecoderFacts, read_facts
from graftline.law import Evidence
from graftline.passes.anchors.fields.contexts import Context, contexts
from graftline.passes.anchors.fields.find import part_from
from graftline.passes.anchors.fields.span import Blocked
from graftline.passes.anchors.roles import dims_of
from graftline.passes.graph.emit import Emit, new_input, new_output, take_place
from graftline.passes.graph.ports import input_of, output_of, port_of
from graftline.passes.laws.common import infer_shapes
from graftline.passes.laws.compare import Comparison, activation_dtype
from graftline.passes.pipeline.graft import Evaluate, Graft, Law
from graftline.ports import Port, by_role, read_ports, write_ports
from graftline.receptive_field import read_fields
from graftline.roles import CONTEXT, DECODED, LATENTS, LENGTHS
from graftline.smoothing import read_smoothing

END = np.iinfo(np.int64).max


def carried_on(
    graft: Graft, before: ir.Model, after: ir.Model, feed: Feed, evaluate: Evaluate
) -> Evidence:
    """Chunks one after another, each with the contexts that the last has left, are the whole."""
    latents, image = port_of(before, LATENTS, "in"), port_of(before, DECODED, "out")
    assert latents is not None
    assert image is not None
    count = feed[latents.name].shape[-1]
    given, pieces = graft.neutral(feed, after), list[Array]()
    for begin, end in pairwise(sorted({0, 1, 2, count // 2, count})):
        part = given | {
            p.name: feed[p.name][..., begin:end]
            for p in read_ports(before)
            if p.direction == "in" and p.shape[-1] == latents.shape[-1]
        }
        made = evaluate(after, part)
        pieces.append(made[DECODED])
        left = by_role(read_ports(after), CONTEXT, "out")
        given |= {p.mirror: made[p.name] for p in left if p.mirror}
    comparison = Comparison(graft.name(), "carried-on", activation_dtype(after))
    axis = next(n for n, d in enumerate(pieces[0].shape) if d != pieces[-1].shape[n])
    whole = evaluate(before, feed)[DECODED]
    gap = comparison.output(DECODED, np.concatenate(pieces, axis), whole)
    return Evidence(f"{len(pieces)} chunks of {count} latents are the whole", gap, comparison.limit)


@dataclass(frozen=True)
class CarryContext(Graft):
    """Streams a causal decoder: each convolution's rows before are an input, and those that the
    next chunk needs an output, so that every row is computed once.

    Neutral: contexts of zeros, which are what the whole is padded with.
    """

    laws: ClassVar[tuple[Law, ...]] = (carried_on,)

    def requires(self, model: ir.Model) -> None:
        facts = read_facts(model)
        if not isinstance(facts, LatentDecoderFacts) or facts.axes != 1:
            raise NotApplicable(f"{self.name()} is for decoders of waveforms [B, C, T]")
        if read_fields(model) or read_smoothing(model) or by_role(read_ports(model), CONTEXT):
            raise NotApplicable(f"this graph is streamed already; name {self.name()} alone")
        if (lengths := input_of(model, LENGTHS)) is not None:
            told = f"{self.name()}: rows end where this says, and a stream knows no end"
            raise NotApplicable(told, [lengths.name or ""])
        for context in self._contexts(model):
            self._dims(model, context)

    def apply(self, model: ir.Model) -> None:
        graph, ports = model.graph, list(read_ports(model))
        for place, context in enumerate(self._contexts(model)):
            node, dims = context.node, self._dims(model, context)
            rows = node.inputs[0]
            assert rows is not None
            assert rows.dtype is not None
            name, dtype = f"{CONTEXT}.{place}", rows.dtype.numpy().name
            emit = Emit(graph, self.name(), node)
            held = new_input(graph, name, rows.dtype, dims)
            joined = emit.op("Concat", [held, rows], axis=context.axis)
            begin = emit.const(f"{CONTEXT}.last.{context.rows}", [-context.rows], np.int64)
            end = emit.const(f"{CONTEXT}.end", [END], np.int64)
            along = emit.const(f"{CONTEXT}.axis.{context.axis}", [context.axis], np.int64)
            left = emit.op("Slice", [joined, begin, end, along])
            new_output(graph, left, f"{name}.next", rows.dtype, dims)
            _reads(context, joined, len(dims))
            ports.append(Port(name, CONTEXT, "in", dtype, dims, place, state="running"))
            ports.append(
                Port(f"{name}.next", CONTEXT, "out", dtype, dims, place, mirror=name,
                     state="running")
            )  # fmt: skip
        write_ports(model, ports)

    def neutral(self, feed: Feed, after: ir.Model) -> Feed:
        batch = len(feed[next(p.name for p in by_role(read_ports(after), LATENTS, "in"))])
        return feed | {
            p.name: np.zeros([d if isinstance(d, int) else batch for d in p.shape], p.dtype)
            for p in by_role(read_ports(after), CONTEXT, "in")
        }

    def _contexts(self, model: ir.Model) -> list[Context]:
        """Raises NotApplicable where there is none, and where the graph is not causal."""
        infer_shapes(model)
        latents, output = input_of(model, LATENTS), output_of(model, DECODED)
        assert latents is not None
        assert output is not None
        dims = dims_of(latents)
        if isinstance(dims[-1], int):
            told = f"the latents are {dims[-1]} long in this graph; export it with any length"
            raise NotApplicable(told, [latents.name or ""])
        known: Mapping[int, int] = {i: d for i, d in enumerate(dims) if isinstance(d, int)}
        part = part_from(latents, output)
        found = part if isinstance(part, Blocked) else contexts(part, len(dims) - 1, known)
        if isinstance(found, Blocked):
            told = f"{self.name()} streams what is causal, with fixed contexts: {found.reason}"
            raise NotApplicable(told, [found.node])
        if not found:
            raise NotApplicable(f"{self.name()}: no element depends on latents before its own")
        return found

    def _dims(self, model: ir.Model, context: Context) -> tuple[int | str, ...]:
        """The shape of a context. Raises NotApplicable where more than the batch is open."""
        rows, latents = context.node.inputs[0], input_of(model, LATENTS)
        assert rows is not None
        assert latents is not None
        dims = [context.rows if i == context.axis else d for i, d in enumerate(dims_of(rows))]
        if any(not isinstance(d, int) and d != dims_of(latents)[0] for d in dims):
            told = f"{self.name()}: the shape {dims} of what is carried is open"
            raise NotApplicable(told, [rows.name or ""])
        return tuple(d if isinstance(d, int) else str(d) for d in dims)


def _reads(context: Context, joined: ir.Value, rank: int) -> None:
    """Let the node read the rows before and its own in place of its pads."""
    node, place = context.node, context.axis - 2
    if node.op_type == "Pad":
        take_place(node, [joined])
        return
    node.replace_input_with(0, joined)
    pads = list(node.attributes.get_ints("pads") or [0] * 2 * (rank - 2))
    pads[place] = context.skip
    node.attributes["pads"] = ir.AttrInt64s("pads", pads)
    node.attributes.pop("auto_pad", None)
