"""canonicalize-one-pass: a host that runs once, under the names and at the opset of all others."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import onnx_ir as ir

from graftline.errors import NotApplicable
from graftline.evaluate import Feed
from graftline.facts import read_facts
from graftline.passes.anchors.one_pass import ONE_PASS
from graftline.passes.anchors.roles import OnePass, Role
from graftline.passes.canonical.opset.opset import open_graph
from graftline.passes.graph.mismatch import Mismatch, refusal
from graftline.passes.pipeline.graft import Graft, Stage
from graftline.ports import Direction, Port, write_ports
from graftline.raw_ports import read_raw, write_raw


@dataclass(frozen=True)
class CanonicalizeOnePass(Graft):
    """Brings a host that runs once, such as a denoiser, to opset 24, and its inputs and outputs to
    ports with the names of their roles."""

    stage: ClassVar[Stage] = "front"

    def requires(self, model: ir.Model) -> None:
        kind = read_facts(model).kind
        if kind not in ONE_PASS:
            known = ", ".join(ONE_PASS)
            raise NotApplicable(f"a {kind} does not run once; {self.name()} is for: {known}")
        if isinstance(found := ONE_PASS[kind](model.graph), Mismatch):
            raise refusal(f"not a {kind}", [found])

    def apply(self, model: ir.Model) -> None:
        found = ONE_PASS[read_facts(model).kind](model.graph)
        assert isinstance(found, OnePass)
        outputs = (found.output, *found.others)
        roles = {role.value: role for role in found.inputs}
        inputs = [roles[v] for v in model.graph.inputs if v in roles]
        raw = [_port(role, "in") for role in inputs] + [_port(role, "out") for role in outputs]
        ordered = [*inputs, *outputs]
        write_raw(model, raw)
        open_graph(model)
        for role in ordered:
            role.value.name = role.name
        write_ports(
            model, [replace(port, name=r.name) for port, r in zip(raw, ordered, strict=True)]
        )

    def dropped(self, before: ir.Model) -> frozenset[str]:
        """All of them: what remains has its canonical name."""
        return frozenset(v.name or "" for v in (*before.graph.inputs, *before.graph.outputs))

    def neutral(self, feed: Feed, after: ir.Model) -> Feed:
        """The same values under the canonical names."""
        raw = [p for p in read_raw(after.metadata_props) if p.direction == "in"]
        return {v.name or "": feed[p.name] for v, p in zip(after.graph.inputs, raw, strict=True)}


def _port(role: Role, direction: Direction) -> Port:
    value = role.value
    assert value.shape is not None
    assert value.dtype is not None
    dims = tuple(d if isinstance(d, int) else str(d.value) for d in value.shape)
    dtype = value.dtype.numpy().name
    return Port(value.name or "", role.role, direction, dtype, dims, owner=role.owner)
