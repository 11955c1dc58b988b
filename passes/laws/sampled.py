"""What a graph made of a denoiser owes: the denoiser itself, called as its sampler is published.

Values are by the names that the front gives ports, which are their roles.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import cache, partial
from itertools import count

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
from graftline.passes.anchors.skips import halves, skip_cut
from graftline.passes.graph.mismatch import Mismatch, refusal
from graftline.passes.graph.ports import input_of, output_of
from graftline.passes.laws.chunked import behind, carried
from graftline.passes.pipeline.graft import Evaluate
from graftline.ports import Port, by_role, read_ports
from graftline.roles import (
    BEGUN,
    CONDITION,
    DECODED,
    DENOISED,
    FRESH,
    LATENTS,
    NOISE,
    RESIDUAL,
    SAMPLE,
    STRENGTH,
)
from graftline.sampling.loop import Predict, clean_latents, draw, fresh_steps, guided
from graftline.sampling.spec import Sampling

Call = Callable[[Feed], Feed]
DECODER_LATENTS, DECODER_OUTPUT = f"{DECODER}.{LATENTS}", f"{DECODER}.{DECODED}"


@dataclass(frozen=True)
class Network:
    """A denoiser to be called; `step` is its time step's port. `halves` gives two calls: of all of
    it, which also gives its encoder's features, and of its decoder, which takes them. `branches`
    is the network that a guided one calls twice, and the guidance."""

    call: Call
    step: Port
    halves: Callable[[], tuple[Call, Call]]
    branches: tuple[Network, float] | None = None

    @classmethod
    def of(cls, model: ir.Model, feed: Feed, evaluate: Evaluate) -> Network:
        """A graph in the oracle; inputs that a call leaves out are as in `feed`."""
        (step,) = by_role(read_ports(model), TIMESTEP, "in")

        def of(part: ir.Model) -> Call:
            return lambda given: evaluate(part, feed | given)

        @cache
        def both() -> tuple[Call, Call]:
            whole, decoder = halves_of(model)
            return of(whole), of(decoder)

        return cls(of(model), step, both)

    def at(self, time: float, feed: Feed) -> Feed:
        """Its outputs at a time step, for feeds of its other inputs."""
        batch = len(feed[SAMPLE])
        dims = [d if isinstance(d, int) else batch for d in self.step.shape]
        return self.call(feed | {TIMESTEP: np.full(dims, time, np.dtype(self.step.dtype))})

    def guided(self, scale: float) -> Network:
        """The same, each call two: with the conditions, and with the unconditional ones."""

        def call(feed: Feed) -> Feed:
            both = (self.call(one)[PREDICTION] for one in _branches(feed))
            return {PREDICTION: guided(scale, *both)}

        return replace(self, call=call, branches=(self, scale))

    def loop(self, sampling: Sampling, feed: Feed, keys: tuple[int, ...] = ()) -> Array:
        """The sample that the published loop makes of unit noise. With `keys` the network's encoder
        runs at these steps alone, and its decoder at all, on the features of the last of them (Li
        et al., arXiv 2312.09608)."""
        own = {NOISE, *(k for k in feed if k.startswith(FRESH))}
        rest = {k: v for k, v in feed.items() if k not in own}
        fresh = [feed[f"{FRESH}.{step}"] for step in fresh_steps(sampling)]
        if self.branches is None:
            return draw(sampling, feed[NOISE], fresh, self._predict(rest, keys))
        host, scale = self.branches
        with_, without = (host._predict(one, keys) for one in _branches(rest))

        def both(x: Array, time: float) -> Array:
            return guided(scale, with_(x, time), without(x, time))

        return draw(sampling, feed[NOISE], fresh, both)

    def _predict(self, rest: Feed, keys: tuple[int, ...]) -> Predict:
        """What a loop asks at each of its steps, in their order."""
        steps, features = count(), Feed()

        def predict(x: Array, time: float) -> Array:
            given = rest | {SAMPLE: x}
            if not keys:
                return self.at(time, given)[PREDICTION]
            key = next(steps) in keys
            call = self.halves()[0 if key else 1]
            made = replace(self, call=call).at(time, given | features)
            features.update({n: v for n, v in made.items() if n != PREDICTION and key})
            return made[PREDICTION]

        return predict


def denoised(call: Call, sampling: Sampling, feed: Feed) -> Array:
    """The clean sample of one call on latents, their residual and as much noise as is asked for."""
    own = (LATENTS, RESIDUAL, NOISE, STRENGTH)
    rest = {name: value for name, value in feed.items() if name not in own}
    latents, residual, noise, strength = (feed[role].astype(np.float64) for role in own)
    x = latents + residual + strength.reshape(-1, 1, 1, 1) * noise

    def predict(seen: Array) -> Array:
        return call(rest | {SAMPLE: seen})[PREDICTION]

    return clean_latents(sampling, x.astype(feed[LATENTS].dtype), strength, predict)


def halves_of(model: ir.Model) -> tuple[ir.Model, ir.Model]:
    """A canonical denoiser with its encoder's features as outputs, and its decoder, with them as
    inputs. Raises NotApplicable where it is not a UNet."""
    sample, prediction = input_of(model, SAMPLE), output_of(model, PREDICTION)
    assert sample is not None
    assert prediction is not None
    if isinstance(cut := skip_cut(model.graph, sample, prediction), Mismatch):
        raise refusal("the denoiser is not a UNet", [cut])
    return halves(model, cut, PREDICTION)


def _branches(feed: Feed) -> tuple[Feed, Feed]:
    """What the two calls of a guided network are fed: with the conditions, and without."""
    names = unconditional(feed)
    rest = {k: v for k, v in feed.items() if k not in names}
    return rest, rest | {names[k]: v for k, v in feed.items() if k in names}


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
    if (BEGUN, TARGET) in roles:
        assert facts.chunks is not None, "chunks come with a spec"
        network = replace(network, call=behind(call, facts.chunks))
    if (UNCONDITIONAL, TARGET) in roles:
        assert facts.sampling is not None, "guidance comes with a schedule"
        network = network.guided(facts.sampling.guidance)
    if (STRENGTH, TARGET) in roles:
        assert facts.sampling is not None, "what is predicted comes with a schedule"
        once = network.call if facts.time is None else partial(network.at, facts.time)
        found = {DENOISED: denoised(once, facts.sampling, own)}
    elif (NOISE, TARGET) not in roles:
        found = network.call(own) if facts.time is None else network.at(facts.time, own)
    else:
        assert facts.sampling is not None, "a loop comes with a schedule"
        found = {DENOISED: network.loop(facts.sampling, own, facts.keys)}
    if (BEGUN, TARGET) in roles:
        found |= carried(own)
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
