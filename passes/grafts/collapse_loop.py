"""collapse-loop: the whole sampling loop as one graph, from unit noise to the sample."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod

import numpy as np
import onnx_ir as ir
import onnx_ir.passes.common as common

from graftline.errors import GraftlineError, NotApplicable
from graftline.evaluate import Feed
from graftline.facts import DenoiserFacts, read_facts, write_facts
from graftline.passes.anchors.denoiser import AUXILIARY, PREDICTION, TIMESTEP
from graftline.passes.grafts.fold_time import check_time
from graftline.passes.grafts.scales import by_scale, check_sizes, doubled
from graftline.passes.graph.cut import drop_ports, keep_outputs
from graftline.passes.graph.emit import Emit, drop_unused, new_input, new_output
from graftline.passes.graph.folding import fold
from graftline.passes.graph.ports import input_of, output_of, port_of
from graftline.passes.graph.splice import splice
from graftline.passes.laws.sampled import Network
from graftline.passes.pipeline.graft import Evaluate, Graft
from graftline.ports import Direction, Port, by_role, read_ports, write_ports
from graftline.roles import DENOISED, FRESH, NOISE, PAST, SAMPLE
from graftline.sampling.loop import first_places, fresh_steps
from graftline.sampling.schedule import Moment, trajectory
from graftline.sampling.spec import Prediction, Sampling

Pair = tuple[float, float]
"""What a value is in the sample and the prediction: x * first + prediction * second."""
Caller = Callable[[Mapping[str, ir.Value], float, int], ir.Value]
"""caller(inputs by name, time step, number of the step) -> the network's prediction."""


@dataclass(frozen=True)
class CollapseLoop(Graft):
    """The sampling loop as one chain of calls over shared weights, with the scheduler's arithmetic
    and every time step's embedding inside: unit noise in, the sample out.

    `steps` is how many; 0: as many as the schedule has. New noise that steps add is an input for
    each, or refused where `deterministic`. Neutral: the published loop, called step by step.
    """

    steps: int = 0
    deterministic: bool = False

    def sampling(self, model: ir.Model) -> Sampling:
        """The schedule with that many steps. Raises NotApplicable where there is none."""
        facts = read_facts(model)
        if not isinstance(facts, DenoiserFacts) or facts.sampling is None:
            raise NotApplicable(
                f"{self.name()} does not know how the host is sampled; say it with --spec FILE"
            )
        return replace(facts.sampling, steps=self.steps or facts.sampling.steps)

    def requires(self, model: ir.Model) -> None:
        if input_of(model, TIMESTEP) is None or output_of(model, PREDICTION) is None:
            raise NotApplicable(f"{self.name()} needs a denoiser that takes a time step")
        if extra := by_role(read_ports(model), AUXILIARY, "out"):
            raise NotApplicable(
                f"{self.name()}: '{extra[0].name}' would be of every step; put prune-branch before "
                "it"
            )
        sampling = self.sampling(model)
        try:
            moments = trajectory(sampling).moments
        except GraftlineError as error:
            raise NotApplicable(f"{self}: {error}") from error
        if self.deterministic and sampling.noisy and fresh_steps(sampling):
            why = f"sampling.eta is {sampling.eta}" if sampling.eta else "its steps add new noise"
            raise NotApplicable(f"{self}: {sampling.scheduler} is not deterministic: {why}")
        for moment in moments:
            check_time(model, moment.time, str(self))
        shapes = [v.shape for v in (input_of(model, SAMPLE), output_of(model, PREDICTION)) if v]
        if str(shapes[0]) != str(shapes[1]):
            raise NotApplicable(
                f"{self.name()}: the sample {shapes[0]} and the prediction {shapes[1]} differ in "
                "shape; a prediction with its variance must be cut to the mean"
            )
        sizes = list(shapes[0] or ())[2:]
        if sampling.scales > 1:
            check_sizes(sizes, str(self))
        if sampling.scheduler == "prefix" and _places(sizes) != sampling.train_steps:
            told = " x ".join(map(str, sizes))
            raise NotApplicable(
                f"{self.name()}: sampling.train_steps is {sampling.train_steps}, the tokens of a "
                f"sample for the scheduler prefix, and the sample is {told}; export it at one size"
            )

    def apply(self, model: ir.Model) -> None:
        sampling, part, graph = self.sampling(model), model.clone(), model.graph
        sample, facts = input_of(model, SAMPLE), read_facts(model)
        assert sample is not None
        assert sample.dtype is not None
        assert isinstance(facts, DenoiserFacts)
        keep_outputs(part, [PREDICTION])
        keep_outputs(model, [v.name or "" for v in graph.outputs if v.name != PREDICTION])
        dims = tuple(d if isinstance(d, int) else str(d) for d in sample.shape or ())
        dtype, ports = sample.dtype, list(read_ports(model))
        given = {v.name or "": v for v in graph.inputs}

        def unit_noise(name: str, role: str) -> ir.Value:
            ports.append(Port(name, role, "in", dtype.numpy().name, dims))
            return new_input(graph, name, dtype, dims)

        path, call = trajectory(sampling), self.caller(graph, part)
        emit = Arithmetic(Emit(graph, self.name()), np.dtype(dtype.numpy()))
        noise = unit_noise(NOISE, NOISE)
        first, *finer = by_scale(emit.emit, noise, sampling.scales)
        x = emit.scaled(first, path.start)
        for step, moment in enumerate(path.moments):
            if moment.doubled is not None:
                kept, added = moment.doubled
                x = emit.sum((doubled(emit.emit, x), kept), (finer.pop(0), added))
            fresh = unit_noise(f"{FRESH}.{step}", FRESH) if moment.fresh else None
            seen = emit.scaled(x, moment.scale)
            said = call(given | {SAMPLE: seen}, moment.time, step)
            if sampling.scales > 1:
                said.shape = None  # the host says that of a sample of the last size
            if moment.prefix is None:
                x = emit.step(sampling, moment, (x, seen, said), fresh)
            else:
                x = emit.prefix(moment.prefix, said, noise)
        end = Emit(graph, self.name()).op("Identity", [x])
        new_output(graph, end, DENOISED, dtype, dims)
        past = port_of(model, PAST)
        made = Port(DENOISED, DENOISED, "out", dtype.numpy().name, dims)
        ports.append(made if past is None else replace(made, mirror=past.name))
        write_ports(model, ports)
        drop_ports(model, [SAMPLE, TIMESTEP, PREDICTION])
        write_facts(model, replace(facts, sampling=sampling, keys=self.key_steps(sampling)))
        common.CommonSubexpressionEliminationPass()(model)  # what depends on no step: once

    def caller(self, graph: ir.Graph, part: ir.Model) -> Caller:
        """What writes one more call of the network `part` at the end of the graph."""
        return lambda given, time, step: called(graph, part, given, time, step, self.name())[
            PREDICTION
        ]

    def key_steps(self, sampling: Sampling) -> tuple[int, ...]:
        """The steps at which all of the network is called; (): at all of them."""
        return ()

    def dropped(self, before: ir.Model) -> frozenset[str]:
        ports = (port_of(before, r, d) for r, d in _GONE)
        return frozenset(p.name for p in ports if p is not None)

    def reference(self, before: ir.Model, feed: Feed, evaluate: Evaluate) -> Feed:
        """The sample that the published loop makes, and what else the host has."""
        network = Network.of(before, feed, evaluate)
        sampling = self.sampling(before)
        names = {SAMPLE, TIMESTEP}
        rest = {k: v for k, v in feed.items() if k not in names} | _noises(feed, sampling)
        drawn = network.loop(sampling, rest, self.key_steps(sampling))
        return evaluate(before, feed) | {DENOISED: drawn}

    def neutral(self, feed: Feed, after: ir.Model) -> Feed:
        facts = read_facts(after)
        assert isinstance(facts, DenoiserFacts)
        assert facts.sampling is not None
        names = {v.name for v in after.graph.inputs}
        all_of = feed | _noises(feed, facts.sampling)
        return {name: array for name, array in all_of.items() if name in names}


_GONE: tuple[tuple[str, Direction], ...] = ((SAMPLE, "in"), (TIMESTEP, "in"), (PREDICTION, "out"))


def _places(sizes: Sequence[int | ir.SymbolicDim]) -> int:
    """Of a sample of that height and width; 0 where one is free."""
    return prod(d if isinstance(d, int) else 0 for d in sizes)


def _noises(feed: Feed, sampling: Sampling) -> Feed:
    """Unit noise for a loop: the feed's sample, and seeded noise for the steps that add some."""
    found: Feed = {NOISE: feed[SAMPLE]}
    for step in fresh_steps(sampling):
        values = np.random.default_rng(step).standard_normal(feed[SAMPLE].shape)
        found[f"{FRESH}.{step}"] = values.astype(feed[SAMPLE].dtype)
    return found


def called(
    graph: ir.Graph, part: ir.Model, given: Mapping[str, ir.Value], time: float, step: int, by: str
) -> dict[str, ir.Value]:
    """The outputs by name of one more call of a network, at a time step, at the end of a graph."""
    copy = part.clone()
    source = input_of(copy, TIMESTEP)
    assert source is not None
    fold(copy, source, time, by)
    drop_unused(copy)
    return splice(graph, copy, given, f"step.{step}")


@dataclass(frozen=True)
class Arithmetic:
    """Writes sums of products with numbers, in the sample's precision."""

    emit: Emit
    dtype: np.dtype[np.generic]

    def scaled(self, value: ir.Value, factor: float) -> ir.Value:
        """value * factor."""
        if factor == 1:
            return value
        held = self.emit.const(f"factor.{factor!r}", np.asarray(factor, self.dtype))
        return self.emit.op("Mul", [value, held])

    def sum(self, *terms: tuple[ir.Value, float]) -> ir.Value:
        """The sum of the terms whose factor is not 0."""
        found = [self.scaled(value, factor) for value, factor in terms if factor]
        total = found[0]
        for term in found[1:]:
            total = self.emit.op("Add", [total, term])
        return total

    def prefix(self, count: int, said: ir.Value, noise: ir.Value) -> ir.Value:
        """What was said at the first places, row after row, and the noise at the others."""
        sizes = [d for d in noise.shape or () if isinstance(d, int)][-2:]
        if count == prod(sizes):
            return said
        places = self.emit.const(f"places.{count}", first_places(sizes, count))
        return self.emit.op("Where", [places, said, noise])

    def step(
        self,
        sampling: Sampling,
        moment: Moment,
        values: tuple[ir.Value, ir.Value, ir.Value],
        fresh: ir.Value | None,
    ) -> ir.Value:
        """The next sample, of the sample, what the network saw of it, and what it said."""
        x, seen, said = values
        clean, noise = split(sampling.prediction, moment)
        more = [(fresh, moment.fresh)] if fresh is not None else []
        ahead = moment.there
        if not sampling.clip:
            own = moment.scale * (ahead.signal * moment.out * clean[0] + ahead.noise * noise[0])
            of_said = ahead.signal * moment.out * clean[1] + ahead.noise * noise[1]
            return self.sum((x, own + ahead.signal * moment.skip), (said, of_said), *more)
        bounds = [
            self.emit.const(f"bound.{b!r}", np.asarray(b, self.dtype))
            for b in (-sampling.clip, sampling.clip)
        ]
        clipped = self.emit.op("Clip", [self.sum((seen, clean[0]), (said, clean[1])), *bounds])
        if sampling.scheduler == "ddpm":
            said, noise = clipped, split("x0", moment)[1]
        return self.sum(
            (clipped, ahead.signal * moment.out), (x, ahead.signal * moment.skip),
            (seen, ahead.noise * noise[0]), (said, ahead.noise * noise[1]), *more,
        )  # fmt: skip


def split(kind: Prediction, moment: Moment) -> tuple[Pair, Pair]:
    """The clean sample and the noise, each as a sum of what the network saw and what it said."""
    signal, noise = moment.here.signal * moment.scale, moment.here.noise * moment.scale
    if kind == "epsilon":
        return (1 / signal, -noise / signal), (0.0, 1.0)
    if kind == "x0":
        return (0.0, 1.0), (1 / noise, -signal / noise)
    if kind == "v":
        return (signal, -noise), (noise, signal)
    return (1.0, -noise), (1.0, signal)
