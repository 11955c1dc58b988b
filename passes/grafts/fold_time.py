"""fold-time: the time step and all that depends on it alone as constants."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from graftline.errors import NotApplicable
from graftline.evaluate import Feed
from graftline.facts import DenoiserFacts, read_facts, write_facts
from graftline.law import Evidence
from graftline.passes.anchors.denoiser import TIMESTEP
from graftline.passes.graph.cut import drop_ports
from graftline.passes.graph.folding import dependents, fold
from graftline.passes.graph.ports import input_of, port_of
from graftline.passes.laws.folded import went
from graftline.passes.laws.sampled import Network
from graftline.passes.pipeline.graft import Evaluate, Graft, WeightFreeLaw
from graftline.sampling.schedule import trajectory


def folded(graft: Graft, before: ir.Model, after: ir.Model) -> Evidence:
    """No node is left that depended on the time step, and now reads constants alone."""
    source = input_of(before, TIMESTEP)
    assert source is not None
    nodes = dependents(before.graph, source)
    return went(graft.name(), before, after, nodes, "the time alone",
                "for the sizes of the sample")  # fmt: skip


@dataclass(frozen=True)
class FoldTime(Graft):
    """Makes the time step a constant, and constants of all that depends on it alone: embeddings,
    adaptive norms' scales and shifts.

    `t` is the time step; none: that of the schedule's single step. It adds no input: the graph is
    the host at that time step.
    """

    computes: ClassVar[tuple[str, ...]] = (TIMESTEP,)
    weight_free: ClassVar[tuple[WeightFreeLaw, ...]] = (folded,)

    t: float | None = None

    def requires(self, model: ir.Model) -> None:
        if input_of(model, TIMESTEP) is None:
            raise NotApplicable(f"{self.name()} needs a denoiser that takes a time step")
        check_time(model, self.time(model), str(self))

    def time(self, model: ir.Model) -> float:
        """The time step. Raises NotApplicable where nobody says it."""
        facts = read_facts(model)
        if self.t is not None:
            return self.t
        if not isinstance(facts, DenoiserFacts) or facts.sampling is None:
            raise NotApplicable(
                "fold-time does not know which time step: write fold-time{t=999}, or say how it is "
                "sampled with --spec FILE"
            )
        fewest = facts.sampling.scales  # one step, or one for each scale
        return trajectory(replace(facts.sampling, steps=fewest)).moments[0].time

    def apply(self, model: ir.Model) -> None:
        source = input_of(model, TIMESTEP)
        assert source is not None
        time, facts = self.time(model), read_facts(model)
        fold(model, source, time, self.name())
        drop_ports(model, [source.name or ""])
        assert isinstance(facts, DenoiserFacts)
        write_facts(model, replace(facts, time=time))

    def reference(self, before: ir.Model, feed: Feed, evaluate: Evaluate) -> Feed:
        """The host at that time step."""
        return Network.of(before, feed, evaluate).at(self.time(before), feed)

    def neutral(self, feed: Feed, after: ir.Model) -> Feed:
        names = {v.name for v in after.graph.inputs}
        return {name: array for name, array in feed.items() if name in names}


def check_time(model: ir.Model, time: float, who: str) -> None:
    """Raise NotApplicable where the host cannot be given that time step."""
    port = port_of(model, TIMESTEP, "in")
    assert port is not None
    if np.dtype(port.dtype).kind in "iu" and time != int(time):
        raise NotApplicable(
            f"{who}: the time step {time:g} is no whole number, and '{port.name}' is {port.dtype}; "
            "choose another spacing or number of steps"
        )
