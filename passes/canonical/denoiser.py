"""canonicalize-denoiser: any exported denoiser, under the names and at the opset of all others."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import onnx_ir as ir

from graftline.evaluate import Feed
from graftline.facts import DenoiserFacts, read_facts, write_facts
from graftline.passes.anchors.denoiser import Denoiser, find_denoiser
from graftline.passes.canonical.opset.opset import open_graph
from graftline.passes.graph.mismatch import Mismatch, refusal
from graftline.passes.pipeline.graft import Graft, Stage
from graftline.ports import Port, write_ports
from graftline.raw_ports import read_raw, write_raw

SAMPLE, TIMESTEP, CONDITION, PREDICTION = "sample", "timestep", "condition", "prediction"


@dataclass(frozen=True)
class CanonicalizeDenoiser(Graft):
    """Brings a denoiser to opset 24 and to the ports sample [B, C, H, W], timestep, condition.{i}
    and prediction."""

    stage: ClassVar[Stage] = "front"

    def requires(self, model: ir.Model) -> None:
        if isinstance(found := find_denoiser(model.graph), Mismatch):
            raise refusal("not a denoiser", [found])

    def apply(self, model: ir.Model) -> None:
        found = find_denoiser(model.graph)
        assert isinstance(found, Denoiser)
        rows = _values(found)
        write_raw(model, [_port(value, role, way) for value, role, _, way in rows])
        open_graph(model)
        ports: list[Port] = []
        for value, role, name, way in rows:
            value.name = name
            ports.append(replace(_port(value, role, way), name=name))
        write_ports(model, ports)
        facts = read_facts(model)
        assert isinstance(facts, DenoiserFacts)
        assert found.sample.dtype is not None
        write_facts(model, replace(facts, dtype=found.sample.dtype.numpy().name))

    def dropped(self, before: ir.Model) -> frozenset[str]:
        """All of them: what remains has its canonical name."""
        return frozenset(v.name or "" for v in (*before.graph.inputs, *before.graph.outputs))

    def neutral(self, feed: Feed, after: ir.Model) -> Feed:
        """The same values under the canonical names."""
        raw = read_raw(after.metadata_props)
        given = [p for p in raw if p.direction == "in"]
        return {v.name or "": feed[p.name] for v, p in zip(after.graph.inputs, given, strict=True)}


def _values(found: Denoiser) -> list[tuple[ir.Value, str, str, str]]:
    """Every input in the order of the graph's, then the output: value, role, name, direction."""
    graph = found.sample.graph
    assert graph is not None
    roles = {found.sample: (SAMPLE, SAMPLE), found.timestep: (TIMESTEP, TIMESTEP)}
    for place, value in enumerate(found.conditions):
        roles[value] = (CONDITION, f"{CONDITION}.{place}")
    rows = [(v, *roles[v], "in") for v in graph.inputs if v in roles]
    return [*rows, (found.prediction, PREDICTION, PREDICTION, "out")]


def _port(value: ir.Value, role: str, way: str) -> Port:
    assert value.shape is not None
    assert value.dtype is not None
    dims = tuple(d if isinstance(d, int) else str(d.value) for d in value.shape)
    return Port(
        value.name or "", role, "in" if way == "in" else "out", value.dtype.numpy().name, dims
    )
