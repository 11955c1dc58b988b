"""What a graph made of a denoiser owes: the denoiser itself, called as its sampler is published.

Values are by the names that the front gives ports, which are their roles.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from graftline.evaluate import Array, Feed
from graftline.facts import DenoiserFacts
from graftline.owners import TARGET
from graftline.passes.anchors.denoiser import (
    DECODER,
    PREDICTION,
    REPLACEMENT,
    TIMESTEP,
    UNCONDITIONAL,
)
from graftline.passes.pipeline.graft import Evaluate
from graftline.ports import Port, by_role, read_ports
from graftline.roles import CONDITION, DECODED, DENOISED, FRESH, LATENTS, NOISE, SAMPLE
from graftline.sampling.loop import draw, fresh_steps, guided
from graftline.sampling.spec import Sampling

Call = Callable[[Feed], Feed]
DECODER_LATENTS, DECODER_OUTPUT = f"{DECODER}.{LATENTS}", f"{DECODER}.{DECODED}"


@dataclass(frozen=True)
class Network:
    """A denoiser to be called; `step` is its time step's port."""

    call: Call
    step: Port

    @classmethod
    def of(cls, model: ir.Model, feed: Feed, evaluate: Evaluate) -> Network:
        """A graph in the oracle; inputs that a call leaves out are as in `feed`."""
        (step,) = by_role(read_ports(model), TIMESTEP, "in")
        return cls(lambda given: evaluate(model, feed | given), step)

    def at(self, time: float, feed: Feed) -> Feed:
        """Its outputs at a time step, for feeds of its other inputs."""
        batch = len(feed[SAMPLE])
        dims = [d if isinstance(d, int) else batch for d in self.step.shape]
        return self.call(feed | {TIMESTEP: np.full(dims, time, np.dtype(self.step.dtype))})

    def guided(self, scale: float) -> Network:
        """The same, each call two: with the conditions, and with the unconditional ones."""

        def call(feed: Feed) -> Feed:
            with_names = unconditional(feed)
            rest = {k: v for k, v in feed.items() if k not in with_names}
            other = {with_names[k]: v for k, v in feed.items() if k in with_names}
            both = (self.call(one)[PREDICTION] for one in (rest, rest | other))
            return {PREDICTION: guided(scale, *both)}

        return Network(call, self.step)

    def loop(self, sampling: Sampling, feed: Feed) -> Array:
        """The sample that the published loop makes of unit noise."""
        own = {NOISE, *(k for k in feed if k.startswith(FRESH))}
        rest = {k: v for k, v in feed.items() if k not in own}

        def predict(x: Array, time: float) -> Array:
            return self.at(time, rest | {SAMPLE: x})[PREDICTION]

        fresh = [feed[f"{FRESH}.{step}"] for step in fresh_steps(sampling)]
        return draw(sampling, feed[NOISE], fresh, predict)


def unconditional(names: Iterable[str]) -> dict[str, str]:
    """Inputs of the unconditional branch, and the condition that each stands for."""
    ends = {name: name.removeprefix(UNCONDITIONAL) for name in names}
    return {n: f"{CONDITION}{end}" for n, end in ends.items() if end != n}


def latents(sample: Array, facts: DenoiserFacts) -> Array:
    """What a decoder makes an image of."""
    return (sample / np.asarray(facts.scale, sample.dtype) + facts.shift).astype(sample.dtype)


def owed(network: Network, ports: Iterable[Port], facts: DenoiserFacts, feed: Feed) -> Feed:
    """What a graph with these ports and facts owes for a feed of it; `network` is the unmodified
    export."""
    roles = {(p.role, p.owner) for p in ports}
    own = {k: v for k, v in feed.items() if not k.startswith((DECODER, REPLACEMENT))}
    call = network.call
    if (UNCONDITIONAL, TARGET) in roles:
        assert facts.sampling is not None, "guidance comes with a schedule"
        network = network.guided(facts.sampling.guidance)
    if (NOISE, TARGET) not in roles:
        found = network.call(own) if facts.time is None else network.at(facts.time, own)
    else:
        assert facts.sampling is not None, "a loop comes with a schedule"
        found = {DENOISED: network.loop(facts.sampling, own)}
    for owner in (DECODER, REPLACEMENT):
        if (LATENTS, owner) in roles:
            found[f"{owner}.{DECODED}"] = _decoded(call, owner, facts, feed)
    if (DECODED, TARGET) in roles:
        scaled = {DECODER_LATENTS: latents(found.pop(DENOISED), facts)}
        found[DECODED] = _decoded(call, DECODER, facts, feed | scaled)
    return found


def _decoded(call: Call, owner: str, facts: DenoiserFacts, feed: Feed) -> Array:
    """What the export's decoder that stands for `owner` in a graph makes of its inputs."""
    theirs = facts.decoder if owner == DECODER else owner
    given = {k.replace(owner, theirs, 1): v for k, v in feed.items() if k.startswith(owner)}
    return call(given)[f"{theirs}.{DECODED}"]
