"""Faults of what makes one graph of a sampling loop."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import onnx_ir as ir

from faults.graphs import nodes
from faults.mutant import Mutant, Touched, after, instead
from graftline.passes.grafts import collapse_loop, fold_time
from graftline.passes.grafts.collapse_loop import Arithmetic, CollapseLoop
from graftline.passes.grafts.fold_guidance import FoldGuidance
from graftline.passes.grafts.join import Join
from graftline.passes.grafts.prune_branch import PruneBranch
from graftline.passes.grafts.swap_subgraph import SwapSubgraph

WHERE = "passes/grafts/"


def _later(real: Any, touched: Touched) -> Any:
    def fold(model: ir.Model, source: ir.Value, number: float, by: str) -> int:
        touched.count += 1
        return real(model, source, number - 13, by)

    return fold


def _no_noise(real: Any, touched: Touched) -> Any:
    def step(self: Arithmetic, sampling: Any, moment: Any, values: Any, fresh: Any) -> ir.Value:
        touched.count += fresh is not None
        return real(self, sampling, replace(moment, fresh=0.0), values, None)

    return step


def _unbounded(real: Any, touched: Touched) -> Any:
    def step(self: Arithmetic, sampling: Any, moment: Any, values: Any, fresh: Any) -> ir.Value:
        touched.count += sampling.clip > 0
        return real(self, replace(sampling, clip=0.0), moment, values, fresh)

    return step


def _unscaled(real: Any, touched: Touched) -> Any:
    def step(self: Arithmetic, sampling: Any, moment: Any, values: Any, fresh: Any) -> ir.Value:
        touched.count += moment.scale != 1
        return real(self, sampling, replace(moment, scale=1.0), values, fresh)

    return step


def _as(op_type: str, other: str) -> Any:
    def edit(model: ir.Model) -> int:
        found = nodes(model, op_type)[-1:]
        for node in found:
            node.op_type = other
        return len(found)

    return edit


def _factor(model: ir.Model) -> int:
    """The first number of the loop's arithmetic is a hundredth larger."""
    names = [n for n in model.graph.initializers if n.startswith(("factor.", "guidance"))][:1]
    for name in names:
        value = model.graph.initializers[name]
        assert value.const_value is not None
        value.const_value = ir.tensor(value.const_value.numpy() * np.float32(1.01), name=name)
    return len(names)


def _other_order(model: ir.Model) -> int:
    """Pixels of a block in another order."""
    found = nodes(model, "DepthToSpace")
    for node in found:
        node.attributes["mode"] = ir.AttrString("mode", "DCR")
    return len(found)


def _branches(model: ir.Model) -> int:
    (split,) = nodes(model, "Split")
    for node in nodes(model, "Sub"):
        node.replace_input_with(0, split.outputs[1])
        node.replace_input_with(1, split.outputs[0])
    return 1


def _one_row(model: ir.Model) -> int:
    """A folded row of the first time step stands for all."""
    found = [n for n in model.graph.initializers if ".folded." in n]
    for name in found:
        value = model.graph.initializers[name]
        value.replace_all_uses_with(model.graph.initializers[name[name.index("folded.") :]])
        del model.graph.initializers[name]
    return len(found)


def _mutant(
    name: str, wrong: str, law: str, apply: Any, passes: str, spec: str = "ddim",
    host: str = "sampler",
) -> Mutant:  # fmt: skip
    options = {"passes": passes, "spec": spec}
    return Mutant(name, WHERE, wrong, host, law, apply, options)


SAMPLERS = [
    _mutant("another-time", "what is folded is of another time step", "neutral",
            instead(fold_time, "fold", _later), "fold-time{t=500}"),
    _mutant("steps-at-another-time", "steps fold another time step", "neutral",
            instead(collapse_loop, "fold", _later), "collapse-loop"),
    _mutant("steps-at-one-time", "all steps read the first one's embedding", "neutral",
            after(CollapseLoop, _one_row), "collapse-loop"),
    _mutant("schedules-factor", "a number of the schedule is off by a hundredth", "neutral",
            after(CollapseLoop, _factor), "collapse-loop"),
    _mutant("no-new-noise", "steps leave out the noise that they should add", "neutral",
            instead(Arithmetic, "step", _no_noise), "collapse-loop", "euler-ancestral"),
    _mutant("clip-forgotten", "the clean sample is not clipped", "neutral",
            instead(Arithmetic, "step", _unbounded), "collapse-loop", "clipped"),
    _mutant("euler-unscaled", "the arithmetic forgets that the network saw a scaled sample",
            "neutral", instead(Arithmetic, "step", _unscaled), "collapse-loop", "euler"),
    _mutant("branches-swapped", "conditional and unconditional change places", "neutral",
            after(FoldGuidance, _branches), "fold-guidance"),
    _mutant("guidance-off", "guidance is off by a hundredth", "neutral",
            after(FoldGuidance, _factor), "fold-guidance"),
    _mutant("latents-scaled-twice", "the sample is multiplied by what it is to be divided by",
            "neutral", after(Join, _as("Div", "Mul")), "collapse-loop | join"),
    _mutant("latents-unshifted", "the shift of the latents is taken away from them", "neutral",
            after(Join, _as("Add", "Sub")), "collapse-loop{steps=1} | join"),
    _mutant("another-decoder", "the decoder that is put in computes something else", "neutral",
            after(SwapSubgraph, _other_order), "swap-subgraph"),
    _mutant("pruned-too-much", "a kept output loses its activation", "neutral",
            after(PruneBranch, _as("Tanh", "Identity")), "prune-branch", host="two-heads"),
]  # fmt: skip
