"""denoise-latents: one call of a denoiser, on latents that get as much noise as is asked for."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir

from graftline.errors import NotApplicable
from graftline.evaluate import Feed
from graftline.facts import DenoiserFacts, read_facts, write_facts
from graftline.passes.anchors.denoiser import AUXILIARY, PREDICTION
from graftline.passes.graph.cut import drop_ports, hand_over
from graftline.passes.graph.emit import Emit, new_input, new_output
from graftline.passes.graph.ports import input_of, output_of
from graftline.passes.laws.sampled import denoised
from graftline.passes.pipeline.graft import Evaluate, Graft
from graftline.ports import Port, by_role, read_ports, write_ports
from graftline.roles import DENOISED, LATENTS, NOISE, RESIDUAL, SAMPLE, STRENGTH
from graftline.sampling.spec import FLOWS, Prediction, Sampling


@dataclass(frozen=True)
class DenoiseLatents(Graft):
    """One call of the denoiser as a codec's decoder: latents and the residual that was learned of
    them, with `strength` times unit noise, in; the clean sample out (DiffO, Park et al., arXiv
    2506.16572; x and its scale as ResShift has them, Yue et al., arXiv 2307.12348):

        x = latents + residual + strength noise, which the network sees over sqrt(1 + strength^2)

    Adds inputs latents, residual and noise of the sample's shape, and strength [B], which a codec
    chooses by its rate. The time step stays an input unless fold-time stands before it. Neutral:
    the host, called on that sample.
    """

    def requires(self, model: ir.Model) -> None:
        sample, prediction = input_of(model, SAMPLE), output_of(model, PREDICTION)
        if sample is None or prediction is None:
            raise NotApplicable(
                f"{self.name()} needs a denoiser that takes a sample; put it before a loop and join"
            )
        if extra := by_role(read_ports(model), AUXILIARY, "out"):
            raise NotApplicable(
                f"{self.name()}: '{extra[0].name}' would be of the noised sample; put prune-branch "
                "before it"
            )
        if str(sample.shape) != str(prediction.shape):
            raise NotApplicable(
                f"{self.name()}: the sample {sample.shape} and the prediction {prediction.shape} "
                "differ in shape; a prediction with its variance must be cut to the mean"
            )
        sampling = self.sampling(model)
        if sampling.scheduler in (*FLOWS, "prefix", "consistency"):
            raise NotApplicable(
                f"{self.name()}: the scheduler {sampling.scheduler} has no sample with any share "
                "of noise that a network sees over sqrt(1 + strength^2); ddim and euler have one"
            )

    def sampling(self, model: ir.Model) -> Sampling:
        """What the prediction means. Raises NotApplicable where nobody says it."""
        facts = read_facts(model)
        if not isinstance(facts, DenoiserFacts) or facts.sampling is None:
            raise NotApplicable(
                f"{self.name()} does not know what the denoiser predicts; say it with --spec FILE"
            )
        return facts.sampling

    def apply(self, model: ir.Model) -> None:
        graph, sampling, facts = model.graph, self.sampling(model), read_facts(model)
        sample, said = input_of(model, SAMPLE), output_of(model, PREDICTION)
        assert sample is not None
        assert sample.dtype is not None
        assert said is not None
        assert isinstance(facts, DenoiserFacts)
        dims = tuple(d if isinstance(d, int) else str(d) for d in sample.shape or ())
        kind, ports = sample.dtype, list(read_ports(model))

        def added(role: str, shape: tuple[str | int, ...]) -> ir.Value:
            ports.append(Port(role, role, "in", kind.numpy().name, shape))
            return new_input(graph, role, kind, list(shape))

        base, learned, noise = (added(role, dims) for role in (LATENTS, RESIDUAL, NOISE))
        strength = added(STRENGTH, dims[:1])
        emit = Emit(graph, self.name())
        places = emit.const("per.row", [-1, 1, 1, 1], np.int64)
        share = emit.op("Reshape", [strength, places])
        x = emit.op("Add", [emit.op("Add", [base, learned]), emit.op("Mul", [noise, share])])
        one = emit.const("one", np.asarray(1, kind.numpy()))
        size = emit.op("Sqrt", [emit.op("Add", [emit.op("Mul", [share, share]), one])])
        seen = emit.op("Div", [x, size])
        hand_over(sample, seen)
        clean = _clean(emit, sampling.prediction, (x, seen, said), share, size)
        if sampling.clip:
            bounds = [
                emit.const(f"bound.{b!r}", np.asarray(b, kind.numpy()))
                for b in (-sampling.clip, sampling.clip)
            ]
            clean = emit.op("Clip", [clean, *bounds])
        graph.outputs.remove(said)
        new_output(graph, emit.op("Identity", [clean]), DENOISED, kind, list(dims))
        ports.append(Port(DENOISED, DENOISED, "out", kind.numpy().name, dims))
        write_ports(model, ports)
        drop_ports(model, [SAMPLE, PREDICTION])
        write_facts(model, replace(facts, sampling=replace(sampling, steps=1)))
        graph.sort()

    def dropped(self, before: ir.Model) -> frozenset[str]:
        return frozenset({SAMPLE, PREDICTION})

    def reference(self, before: ir.Model, feed: Feed, evaluate: Evaluate) -> Feed:
        """The clean sample that the host's prediction says the noised latents are made of."""
        given = _given(feed)
        rest = {k: v for k, v in feed.items() if k != SAMPLE}
        made = denoised(lambda one: evaluate(before, one), self.sampling(before), rest | given)
        return evaluate(before, feed) | {DENOISED: made}

    def neutral(self, feed: Feed, after: ir.Model) -> Feed:
        names = {v.name for v in after.graph.inputs}
        return {name: v for name, v in (feed | _given(feed)).items() if name in names}


def _given(feed: Feed) -> Feed:
    """Seeded latents, a residual, noise and strengths, of which no two rows' are alike."""
    sample, random = feed[SAMPLE], np.random.default_rng(0)
    found = {
        role: random.standard_normal(sample.shape).astype(sample.dtype)
        for role in (LATENTS, RESIDUAL, NOISE)
    }
    strengths = np.linspace(0.25, 2, len(sample)).astype(sample.dtype)
    return found | {STRENGTH: strengths}


def _clean(
    emit: Emit,
    kind: Prediction,
    values: tuple[ir.Value, ir.Value, ir.Value],
    share: ir.Value,
    size: ir.Value,
) -> ir.Value:
    """The clean sample, of x, what the network saw of it, and what it said."""
    x, seen, said = values
    if kind == "x0":
        return said
    noise = emit.op("Mul", [share, said])
    if kind == "epsilon":
        return emit.op("Sub", [x, noise])
    return emit.op("Div", [emit.op("Sub", [seen, noise]), size])
