"""fold-guidance: classifier-free guidance in the graph, as one batch of two."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir

from graftline.errors import NotApplicable
from graftline.evaluate import Feed
from graftline.facts import DenoiserFacts, read_facts, write_facts
from graftline.owners import TARGET
from graftline.passes.anchors.denoiser import AUXILIARY, PREDICTION, TIMESTEP, UNCONDITIONAL
from graftline.passes.graph.cut import keep_outputs
from graftline.passes.graph.emit import Emit, new_input, new_output
from graftline.passes.graph.ports import output_of
from graftline.passes.graph.splice import splice
from graftline.passes.laws.sampled import Network
from graftline.passes.pipeline.graft import Evaluate, Graft
from graftline.ports import Port, by_role, read_ports, write_ports
from graftline.roles import CONDITION, PAST, SAMPLE


@dataclass(frozen=True)
class FoldGuidance(Graft):
    """Guides the prediction in one call of twice the batch, with the conditions and with the
    unconditional ones, in place of two calls: u + guidance (c - u).

    Adds inputs unconditional.{i} of each condition's shape. `scale` is the guidance; 0: as the spec
    says. Neutral: two calls of the host, and their sum.
    """

    scale: float = 0.0

    def guidance(self, model: ir.Model) -> float:
        """How far predictions go beyond the unconditional one. Raises NotApplicable where nobody
        says it."""
        facts = read_facts(model)
        if not isinstance(facts, DenoiserFacts) or facts.sampling is None:
            raise NotApplicable(f"{self.name()} does not know how the host is sampled; add --spec")
        if (scale := self.scale or facts.sampling.guidance) == 1:
            raise NotApplicable(
                "fold-guidance has nothing to fold at guidance 1; say it in the spec: [sampling] "
                "guidance = 7.5; weights that guidance was distilled into need no such pass"
            )
        return scale

    def requires(self, model: ir.Model) -> None:
        self.guidance(model)
        ports = read_ports(model)
        if output_of(model, PREDICTION) is None:
            raise NotApplicable("fold-guidance guides a prediction; put it before collapse-loop")
        if by_role(ports, UNCONDITIONAL, "in"):
            raise NotApplicable("fold-guidance: the host's prediction is guided already")
        if by_role(ports, PAST, "in"):
            raise NotApplicable("fold-guidance: chunks are not guided; leave it or carry-chunk out")
        if extra := by_role(ports, AUXILIARY, "out"):
            raise NotApplicable(
                f"fold-guidance: '{extra[0].name}' would be of both branches; put prune-branch "
                "before it"
            )
        (sample,) = by_role(ports, SAMPLE, "in")
        if not (conditions := _conditions(ports)):
            raise NotApplicable("fold-guidance: the denoiser has no conditions to guide by")
        for port in (sample, *conditions):
            if isinstance(port.shape[0] if port.shape else 1, int):
                raise NotApplicable(
                    f"fold-guidance: '{port.name}' {list(port.shape)} has no free batch for two "
                    "branches; export it with a dynamic batch"
                )

    def apply(self, model: ir.Model) -> None:
        graph, facts, part = model.graph, read_facts(model), model.clone()
        ports, scale = list(read_ports(model)), self.guidance(model)
        prediction = output_of(model, PREDICTION)
        assert prediction is not None
        assert prediction.dtype is not None
        dims = [d if isinstance(d, int) else str(d) for d in prediction.shape or ()]
        keep_outputs(part, [PREDICTION])
        keep_outputs(model, [v.name or "" for v in graph.outputs if v is not prediction])
        emit, given = Emit(graph, self.name()), {v.name or "": v for v in graph.inputs}
        for port in _conditions(ports):
            name, value = port.name.replace(CONDITION, UNCONDITIONAL), given[port.name]
            assert value.dtype is not None
            other = new_input(graph, name, value.dtype, list(port.shape))
            ports.append(Port(name, UNCONDITIONAL, "in", port.dtype, port.shape))
            given[port.name] = emit.op("Concat", [value, other], axis=0)
        for role in (SAMPLE, TIMESTEP):
            (port,) = by_role(ports, role, "in")
            if port.shape and not isinstance(port.shape[0], int):
                given[role] = emit.op("Concat", [given[role], given[role]], axis=0)
        (both,) = splice(graph, part, given, "guided").values()
        both.shape = None
        halves = emit.node("Split", [both], ["", ""], axis=0, num_outputs=2).outputs
        factor = emit.const("guidance", np.asarray(scale, prediction.dtype.numpy()))
        apart = emit.op("Mul", [emit.op("Sub", [halves[0], halves[1]]), factor])
        end = emit.op("Add", [halves[1], apart])
        new_output(graph, end, PREDICTION, prediction.dtype, dims)
        write_ports(model, ports)
        assert isinstance(facts, DenoiserFacts)
        assert facts.sampling is not None
        write_facts(model, replace(facts, sampling=replace(facts.sampling, guidance=scale)))

    def reference(self, before: ir.Model, feed: Feed, evaluate: Evaluate) -> Feed:
        """Two calls of the host, and their sum. The branches differ, so that it can be wrong."""
        network = Network.of(before, feed, evaluate).guided(self.guidance(before))
        return evaluate(before, feed) | network.call(_apart(feed, read_ports(before)))

    def neutral(self, feed: Feed, after: ir.Model) -> Feed:
        return _apart(feed, read_ports(after))


def _conditions(ports: Iterable[Port]) -> list[Port]:
    return [p for p in by_role(ports, CONDITION, "in") if p.owner == TARGET]


def _apart(feed: Feed, ports: Iterable[Port]) -> Feed:
    """A feed with unconditional inputs: the conditions, members of the batch in another order and
    halved."""
    found = dict(feed)
    for port in _conditions(ports):
        value = feed[port.name][::-1]
        other = value if value.dtype.kind in "iub" else value * 0.5
        name = port.name.replace(CONDITION, UNCONDITIONAL)
        found[name] = np.ascontiguousarray(other.astype(value.dtype))
    return found
