"""Faults of what makes one graph of a sampling loop."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import onnx_ir as ir

from faults.graphs import nodes
from faults.mutant import Mutant, Touched, after, instead
from graftline.facts import DenoiserFacts, read_facts, write_facts
from graftline.passes.grafts import collapse_loop, encoder_reuse, fold_time
from graftline.passes.grafts.collapse_loop import Arithmetic, CollapseLoop
from graftline.passes.grafts.denoise_latents import DenoiseLatents
from graftline.passes.grafts.encoder_reuse import EncoderReuse, Reusing
from graftline.passes.grafts.fold_guidance import FoldGuidance
from graftline.passes.grafts.join import Join
from graftline.passes.grafts.prune_branch import PruneBranch
from graftline.passes.grafts.swap_subgraph import SwapSubgraph

WHERE, KEYS = "passes/grafts/", "encoder-reuse{keys=0+2}"


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


def _noise_as_said(real: Any, touched: Touched) -> Any:
    def step(self: Arithmetic, sampling: Any, moment: Any, values: Any, fresh: Any) -> ir.Value:
        touched.count += sampling.clip > 0 and sampling.scheduler == "ddpm"
        return real(self, replace(sampling, scheduler="ddim"), moment, values, fresh)

    return step


def _unscaled(real: Any, touched: Touched) -> Any:
    def step(self: Arithmetic, sampling: Any, moment: Any, values: Any, fresh: Any) -> ir.Value:
        touched.count += moment.scale != 1
        return real(self, sampling, replace(moment, scale=1.0), values, fresh)

    return step


def _one_token_more(real: Any, touched: Touched) -> Any:
    def prefix(self: Arithmetic, count: int, said: ir.Value, noise: ir.Value) -> ir.Value:
        touched.count += 1
        return real(self, count + (count < 64), said, noise)

    return prefix


def _coarse_first(real: Any, touched: Touched) -> Any:
    def by_scale(emit: Any, noise: ir.Value, scales: int) -> list[ir.Value]:
        touched.count += 1
        first, *finer = real(emit, noise, scales)
        half = emit.const("half", np.asarray(0.5, np.float32))
        return [emit.op("Mul", [first, half]), *finer]

    return by_scale


def _white(real: Any, touched: Touched) -> Any:
    def by_scale(emit: Any, noise: ir.Value, scales: int) -> list[ir.Value]:
        touched.count += 1
        return [*real(emit, noise, scales)[:-1], noise]

    return by_scale


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


def _residual_off(model: ir.Model) -> int:
    (residual,) = (v for v in model.graph.inputs if v.name == "residual")
    for node in residual.consumers():
        node.op_type = "Sub"
    return len(residual.consumers())


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


def _oldest(real: Any, touched: Touched) -> Any:
    """Steps read the features of the first key step for ever."""

    def call(self: Reusing, given: Any, time: float, step: int) -> ir.Value:
        kept = dict(self.features)
        made = real(self, given, time, step)
        touched.count += bool(kept)
        self.features = kept or self.features
        return made

    return call


def _at_the_keys_time(real: Any, touched: Touched) -> Any:
    """Decoders between run at the time of a step before."""
    times: list[float] = []

    def called(graph: Any, part: Any, given: Any, time: float, step: int, by: str) -> Any:
        times.append(time)
        late = len(times) > 1 and "feature.0" in given
        touched.count += late
        return real(graph, part, given, times[-2] if late else time, step, by)

    return called


def _other_skips(real: Any, touched: Touched) -> Any:
    """Skip connections of one size change places where the decoder takes them."""

    def call(self: Reusing, given: Any, time: float, step: int) -> ir.Value:
        made = real(self, given, time, step)
        held = self.features
        touched.count += 1
        self.features = held | {"feature.0": held["feature.1"], "feature.1": held["feature.0"]}
        return made

    return call


def _one_key_fewer(model: ir.Model) -> int:
    """The last key step is not noted."""
    facts = read_facts(model)
    assert isinstance(facts, DenoiserFacts)
    write_facts(model, replace(facts, keys=facts.keys[:-1]))
    return 1


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
    _mutant("clip-without-its-noise", "the noise left is not that of the clipped sample", "neutral",
            instead(Arithmetic, "step", _noise_as_said), "collapse-loop", "ddpm, clipped"),
    _mutant("euler-unscaled", "the arithmetic forgets that the network saw a scaled sample",
            "neutral", instead(Arithmetic, "step", _unscaled), "collapse-loop", "euler"),
    _mutant("prefix-of-a-token-more", "a step keeps one predicted token too many", "neutral",
            instead(Arithmetic, "prefix", _one_token_more), "collapse-loop", "prefix", "tokens"),
    _mutant("noise-of-averages", "the first size's noise is as weak as averages of it are",
            "neutral", instead(collapse_loop, "by_scale", _coarse_first), "multi-scale", "pyramid"),
    _mutant("noise-beyond-blocks", "new noise is not taken within blocks alone", "neutral",
            instead(collapse_loop, "by_scale", _white), "multi-scale", "pyramid"),
    _mutant("latents-unscaled", "the network sees latents that are too large for their noise",
            "neutral", after(DenoiseLatents, _as("Div", "Mul")), "denoise-latents"),
    _mutant("residual-taken-away", "the residual is taken away from the latents", "neutral",
            after(DenoiseLatents, _residual_off), "denoise-latents"),
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
    _mutant("features-of-the-first-key", "features are never those of a later key step", "neutral",
            instead(Reusing, "__call__", _oldest), KEYS, host="unet"),
    _mutant("decoder-at-the-keys-time", "a decoder runs at another step's time", "neutral",
            instead(encoder_reuse, "called", _at_the_keys_time), KEYS, host="unet"),
    _mutant("skips-swapped", "the middle and a skip connection change places", "neutral",
            instead(Reusing, "__call__", _other_skips), KEYS, host="unet"),
    _mutant("key-not-noted", "facts lack a key step", "whole",
            after(EncoderReuse, _one_key_fewer), KEYS, host="unet"),
    _mutant("pruned-too-much", "a kept output loses its activation", "neutral",
            after(PruneBranch, _as("Tanh", "Identity")), "prune-branch", host="two-heads"),
]  # fmt: skip
