"""A host as its spec says it is: roles declared, and its decoders beside it in one graph."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields, replace

import onnx_ir as ir

from graftline.errors import CheckpointError, nearest
from graftline.facts import DagRecogniserFacts, DenoiserFacts, write_facts
from graftline.kinds.own_network import beside
from graftline.models.checkpoint import open_checkpoint
from graftline.models.graph_facts import facts_of
from graftline.models.host import Host, Watch
from graftline.models.spec import Part, Spec
from graftline.owners import TARGET
from graftline.passes.anchors.denoiser import (
    DECODER,
    PREDICTION,
    REPLACEMENT,
    TIMESTEP,
)
from graftline.passes.anchors.one_pass import ONE_PASS
from graftline.passes.anchors.roles import declare
from graftline.passes.canonical.opset.opset import open_graph
from graftline.passes.grafts.join import Join
from graftline.passes.grafts.swap_subgraph import SwapSubgraph
from graftline.passes.graph.mismatch import Mismatch, refusal
from graftline.passes.graph.splice import splice
from graftline.passes.pipeline.graft import Graft
from graftline.passes.pipeline.pipeline import Pipeline
from graftline.roles import CONDITION, LATENTS, SAMPLE

DENOISER, QUERY_DECODER = "denoiser", "query-decoder"
_READ_BY: Mapping[str, tuple[type[Graft], ...]] = {
    DECODER: (Join, SwapSubgraph), REPLACEMENT: (SwapSubgraph,),
}  # fmt: skip
"""The passes that a graph beside the host is for."""


def composed(host: Host, spec: Spec, passes: Pipeline, say: Watch) -> Host:
    """The host with what the spec says of it, and the graphs that the passes read. Raises
    CheckpointError where the spec names what is not there or is another kind's, and NotApplicable
    where the graph is not a denoiser, a recogniser over vertices or a decoder of queries all the
    same."""
    model, kind = host.model, DENOISER
    if isinstance(host.facts, DagRecogniserFacts):
        kind = host.facts.kind
        _check_decoder_alone(spec, kind)
    said = [(SAMPLE, spec.inputs.sample), (TIMESTEP, spec.inputs.timestep)]
    said += [(CONDITION, name) for name in spec.inputs.conditions]
    for role, name in said:
        _declare(model.graph.inputs, role, name, f"inputs.{role}")
    if (chunks := spec.chunks) is not None:
        _declare(model.graph.inputs, CONDITION, chunks.latents, "chunks.latents")
        _declare(model.graph.inputs, CONDITION, chunks.timestep, "chunks.timestep")
    _declare(model.graph.outputs, PREDICTION, spec.outputs.prediction, "outputs.prediction")
    states, owns = dict(host.states), {TARGET: host.own}
    for owner, part in ((DECODER, spec.decoder), (REPLACEMENT, spec.replacement)):
        readers = _READ_BY[owner]
        if part is not None and any(isinstance(graft, readers) for graft in passes.grafts):
            other = _add(model, owner, part, say)
            states |= other.states
            owns[owner] = other.own
        elif part is not None:
            say(f"the spec's {owner} is left out: no pass reads it")
    if kind == DENOISER and _is_query_decoder(model.graph):
        kind = QUERY_DECODER
        _check_own(spec, Spec(outputs=spec.outputs), kind)
    if isinstance(found := ONE_PASS[kind](model.graph), Mismatch):
        raise refusal(f"not a {kind}", [found])
    facts = facts_of(model, found, host.facts.source)
    if isinstance(facts, DenoiserFacts):
        facts = replace(facts, sampling=spec.sampling)
        if chunks is not None:
            names = {role.value.name or "": role.name for role in found.inputs} | {"": ""}
            own = {"latents": names[chunks.latents], "timestep": names[chunks.timestep]}
            facts = replace(facts, chunks=replace(chunks, **own))
        if spec.decoder is not None:
            facts = replace(facts, scale=spec.decoder.scale, shift=spec.decoder.shift)
    write_facts(model, facts)
    return replace(host, facts=facts, states=states, own=beside(owns))


def _check_decoder_alone(spec: Spec, kind: str) -> None:
    """Raise CheckpointError for what a spec says of denoisers alone."""
    _check_own(spec, Spec(decoder=spec.decoder), kind)
    part = spec.decoder
    if part is not None and (part.scale, part.shift) != (1.0, 0.0):
        said = "decoder.scale" if part.scale != 1 else "decoder.shift"
        raise CheckpointError(f"{said} of the spec is for denoisers; the graph is a {kind}")


def _check_own(spec: Spec, own: Spec, kind: str) -> None:
    """Raise CheckpointError for what a spec says beside what is this kind's own."""
    said = [one.name for one in fields(Spec) if getattr(spec, one.name) != getattr(own, one.name)]
    if said:
        raise CheckpointError(f"{said[0]} of the spec is for denoisers; the graph is a {kind}")


def _is_query_decoder(graph: ir.Graph) -> bool:
    """Whether it is that, and no denoiser: now that the output which it is for is declared."""
    found = {kind: ONE_PASS[kind](graph) for kind in (DENOISER, QUERY_DECODER)}
    kinds = [kind for kind, one in found.items() if not isinstance(one, Mismatch)]
    return kinds == [QUERY_DECODER]


def _declare(values: Sequence[ir.Value], role: str, name: str, field: str) -> None:
    known = {v.name or "": v for v in values}
    if name and name not in known:
        raise CheckpointError(f"{field} of the spec is '{name}'{nearest(name, known)}")
    if name:
        declare(known[name], role)


def _add(model: ir.Model, owner: str, part: Part, say: Watch) -> Host:
    """Put a graph beside the model's own, its inputs and outputs under the owner's name; the host
    that it was."""
    other = open_checkpoint(part.graph).host(watch=say)
    if other.model.opset_imports != model.opset_imports or other.model.functions or model.functions:
        for one in (model, other.model):
            open_graph(one)
    given: dict[str, ir.Value] = {}
    for value in other.model.graph.inputs:
        name = value.name or ""
        shape = _own_symbols(value, owner)
        given[name] = ir.Value(name=f"{owner}.{name}", shape=shape, type=value.type)
        declare(given[name], LATENTS if name == part.latents else "", owner)
    if part.latents and part.latents not in given:
        close = nearest(part.latents, given)
        raise CheckpointError(f"{owner}.latents of the spec is '{part.latents}'{close}")
    model.graph.inputs.extend(given.values())
    for name, value in splice(model.graph, other.model, given, owner).items():
        value.name, value.shape = f"{owner}.{name}", _own_symbols(value, owner)
        declare(value, owner=owner)
        model.graph.outputs.append(value)
    return other


def _own_symbols(value: ir.Value, owner: str) -> ir.Shape | None:
    """A shape whose symbols are the owner's: graphs in one file may run at different sizes."""
    if value.shape is None:
        return None
    return ir.Shape([d if isinstance(d, int) else f"{owner}_{d.value}" for d in value.shape])
