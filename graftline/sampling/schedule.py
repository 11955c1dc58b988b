"""The steps of a scheduler: which time steps, and how noisy the sample is at each."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import pairwise
from math import cos, pi, sqrt

import numpy as np
import numpy.typing as npt

from graftline.errors import GraftlineError
from graftline.sampling.spec import Sampling

Doubles = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Level:
    """How noisy a sample is: x = signal x0 + noise epsilon."""

    signal: float
    noise: float


@dataclass(frozen=True)
class Moment:
    """One step, from the level `here` at time step `time` to the level `there`, to which `fresh`
    times new noise is added. The network is given `scale` times the sample. What is carried on is
    `skip` times the sample and `out` times the predicted clean sample (0 and 1 but for consistency
    models). `prefix`: levels do not count, and the next sample is the prediction at so many places,
    row after row, and the first noise at the others. `doubled`: before the step the sample becomes
    twice as large, by the first number times it and the second times noise within blocks of 2 x 2.
    """

    time: float
    here: Level
    there: Level
    fresh: float = 0.0
    scale: float = 1.0
    skip: float = 0.0
    out: float = 1.0
    prefix: int | None = None
    doubled: tuple[float, float] | None = None


@dataclass(frozen=True)
class Trajectory:
    """The steps in order; unit noise times `start` is the first sample."""

    start: float
    moments: tuple[Moment, ...]


def trajectory(sampling: Sampling) -> Trajectory:
    """The steps of a loop. Raises GraftlineError where its parameters do not go together."""
    sampling.check()
    if sampling.scheduler == "flow-match":
        return Trajectory(1.0, _flow(sampling))
    if sampling.scheduler == "prefix":
        return Trajectory(1.0, _prefix(sampling))
    if sampling.scheduler == "pyramid":
        return Trajectory(1.0, _pyramid(sampling))
    if sampling.scheduler == "consistency":
        return Trajectory(sampling.sigmas[0], _consistency(sampling))
    if sampling.scheduler in ("euler", "euler-ancestral"):
        return _euler(sampling)
    return Trajectory(1.0, (_lcm if sampling.scheduler == "lcm" else _ddim)(sampling))


def signal_shares(sampling: Sampling) -> Doubles:
    """[train_steps]: the share of the clean sample in the variance at each of the training's time
    steps, the product of 1 - beta (Ho et al., 2006.11239; `cosine`: Nichol and Dhariwal,
    2102.09672)."""
    count = sampling.train_steps
    if sampling.betas == "cosine":
        bar = [cos((i / count + 0.008) / 1.008 * pi / 2) ** 2 for i in range(count + 1)]
        betas = np.minimum(1 - np.divide(bar[1:], bar[:-1]), 0.999)
    elif sampling.betas == "scaled-linear":
        ends = sqrt(sampling.beta_start), sqrt(sampling.beta_end)
        betas = np.linspace(*ends, count, dtype=np.float64) ** 2
    else:
        betas = np.linspace(sampling.beta_start, sampling.beta_end, count, dtype=np.float64)
    return np.cumprod(1 - betas).astype(np.float64)


def time_steps(sampling: Sampling) -> Doubles:
    """[steps]: the training's time steps that are taken, falling."""
    count, steps = sampling.train_steps, sampling.steps
    if sampling.spacing == "linspace":
        return np.linspace(0, count - 1, steps, dtype=np.float64)[::-1]
    if sampling.spacing == "trailing":
        times = np.arange(count, 0, -count / steps, dtype=np.float64)
        return np.round(times[:steps]) - 1
    times = (np.arange(steps) * (count // steps))[::-1] + sampling.offset
    if times[0] >= count:
        raise GraftlineError(
            f"sampling.offset is {sampling.offset}: the first of {steps} time steps is {times[0]}, "
            f"and the training had {count}"
        )
    return times.astype(np.float64)


def _levels(sampling: Sampling, times: Doubles) -> list[Level]:
    """At each time step, and behind the last."""
    shares = signal_shares(sampling)
    last = 1.0 if sampling.final == "one" else float(shares[0])
    kept = [*(float(shares[int(t)]) for t in times), last]
    return [Level(sqrt(k), sqrt(1 - k)) for k in kept]


def _ddim(sampling: Sampling) -> tuple[Moment, ...]:
    times, eta = np.round(time_steps(sampling)), sampling.eta
    if sampling.scheduler == "ddpm":
        eta = 1.0
    levels, found = _levels(sampling, times), list[Moment]()
    for time, here, there in zip(times, levels, levels[1:], strict=False):
        lost = max(1 - (here.signal / there.signal) ** 2, 0.0)
        fresh = eta * there.noise / here.noise * sqrt(lost)
        kept = sqrt(max(there.noise**2 - fresh**2, 0.0))
        found.append(Moment(float(time), here, Level(there.signal, kept), fresh))
    return tuple(found)


def _lcm(sampling: Sampling) -> tuple[Moment, ...]:
    stride = sampling.train_steps // sampling.original_steps
    origin = (np.arange(1, sampling.original_steps + 1) * stride - 1)[::-1]
    places = np.floor(np.linspace(0, len(origin), sampling.steps, endpoint=False)).astype(int)
    times = origin[places].astype(np.float64)
    levels = _levels(sampling, times)
    found: list[Moment] = []
    for place, (time, here) in enumerate(zip(times, levels, strict=False)):
        there = levels[place + 1] if place + 1 < len(times) else Level(1.0, 0.0)
        scaled = time * sampling.timestep_scaling
        size = scaled**2 + sampling.sigma_data**2
        fades = sampling.sigma_data**2 / size, scaled / sqrt(size)
        kept = Level(there.signal, 0.0)  # the predicted noise is not carried on, new noise is
        found.append(Moment(float(time), here, kept, there.noise, 1.0, *fades))
    return tuple(found)


def _consistency(sampling: Sampling) -> tuple[Moment, ...]:
    """Clean samples of every sigma's; the training's cleanest have `sigma_min`, and the noise that
    is added makes up for the rest."""
    least, sigmas = sampling.sigma_min, sampling.sigmas[: sampling.steps]
    return tuple(
        Moment(here, Level(1.0, here), Level(1.0, 0.0), sqrt(there**2 - least**2))
        for here, there in pairwise((*sigmas, least))
    )


def _euler(sampling: Sampling) -> Trajectory:
    """In x0 + sigma epsilon: the network sees that over sqrt(sigma^2 + 1)."""
    shares, times = signal_shares(sampling), time_steps(sampling)
    known = np.sqrt((1 - shares) / shares)
    sigmas = [*np.interp(times, np.arange(len(known)), known).tolist(), 0.0]
    found: list[Moment] = []
    for time, here, there in zip(times, sigmas, sigmas[1:], strict=False):
        fresh = 0.0
        if sampling.scheduler == "euler-ancestral":
            fresh = sqrt(max(there**2 * (here**2 - there**2) / here**2, 0.0))
        kept = Level(1.0, sqrt(max(there**2 - fresh**2, 0.0)))
        scale = 1 / sqrt(here**2 + 1)
        found.append(Moment(float(time), Level(1.0, here), kept, fresh, scale))
    start = sigmas[0] if sampling.spacing != "leading" else sqrt(sigmas[0] ** 2 + 1)
    return Trajectory(start, tuple(found))


def _prefix(sampling: Sampling) -> tuple[Moment, ...]:
    """Tokens known at each step, and behind the last all of them."""
    tokens, steps, level = sampling.train_steps, sampling.steps, Level(0.0, 1.0)
    known = [step * tokens // steps for step in range(steps + 1)]
    return tuple(
        Moment(float(here + sampling.offset), level, level, prefix=there)
        for here, there in pairwise(known)
    )


def _flow(sampling: Sampling) -> tuple[Moment, ...]:
    """Along straight lines: (1 - sigma) x0 + sigma epsilon, sigma shifted as it was in the training
    (Esser et al., section 5.3.2): its steps, and before them the end that the training had."""

    def shifted(sigma: float) -> float:
        return sampling.shift * sigma / (1 + (sampling.shift - 1) * sigma)

    trailing = sampling.spacing == "trailing"
    least = 1 / sampling.steps if trailing else shifted(1 / sampling.train_steps)
    sigmas = [*(shifted(float(s)) for s in np.linspace(1.0, least, sampling.steps)), 0.0]
    levels = [Level(1 - s, s) for s in sigmas]
    times = [s * sampling.train_steps for s in sigmas]
    return tuple(Moment(*row) for row in zip(times, levels, levels[1:], strict=False))


def _pyramid(sampling: Sampling) -> tuple[Moment, ...]:
    """Scale after scale, coarse to fine. A scale begins and ends at shares of noise that divide
    those of the whole path evenly, begins noisier by what doubling a sample has made alike within
    blocks (equation 15), and takes time steps in proportion to how far it goes."""
    count, scales, each = sampling.train_steps, sampling.scales, sampling.steps // sampling.scales
    ends = [1 - (scale * count // scales) / count for scale in range(scales + 1)]
    kept = [1.0, *(1 / (1 + share) for share in ends[1:-1])]
    starts = [1 - keep * (1 - share) for keep, share in zip(kept, ends, strict=False)]
    far = np.cumsum([0.0, *(a - b for a, b in zip(starts, ends[1:], strict=True))])
    times = [count - min(int(way / far[-1] * count), count - 1) for way in far.tolist()]
    found: list[Moment] = []
    for scale, keep in enumerate(kept):
        last = times[scale + 1] + (times[scale] - times[scale + 1]) / count
        line = [*np.linspace(1, 1 / count, each, dtype=np.float64).tolist(), 0.0]
        levels = [Level(1 - share, share) for share in line]
        rows = np.linspace(times[scale], last, each, dtype=np.float64).tolist()
        moments = [Moment(*row) for row in zip(rows, levels, levels[1:], strict=False)]
        if scale:
            moments[0] = replace(moments[0], doubled=(keep, keep * ends[scale] * sqrt(3)))
        found += moments
    return tuple(found)
