"""The sampling loop as it is published, one call of the network after another: what a graph with
the loop inside is compared with."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from graftline.evaluate import Array
from graftline.sampling.schedule import Moment, trajectory
from graftline.sampling.spec import Prediction, Sampling

Predict = Callable[[Array, float], Array]
"""predict(sample as the network takes it, time step) -> the network's prediction."""
Call = Callable[[Array], Array]


def draw(sampling: Sampling, noise: Array, fresh: Sequence[Array], predict: Predict) -> Array:
    """The sample [B, C, H, W] that the loop makes of unit noise of its size; `fresh` is the unit
    noise that each step adds, as `fresh_steps` counts it. In fp64 but for the network."""
    path = trajectory(sampling)
    first, *finer = by_scale(noise.astype(np.float64), sampling.scales)
    x, left = first * path.start, list(fresh)
    for moment in path.moments:
        if moment.doubled is not None:
            kept, added = moment.doubled
            x = kept * _doubled(x) + added * finer.pop(0)
        seen = x * moment.scale
        said = predict(seen.astype(noise.dtype), moment.time).astype(np.float64)
        if moment.prefix is not None:
            x = np.where(first_places(noise.shape, moment.prefix), said, noise)
            continue
        clean, epsilon = clean_and_noise(sampling.prediction, moment, seen, said)
        if sampling.clip:
            clean = np.clip(clean, -sampling.clip, sampling.clip)
            if sampling.scheduler == "ddpm":
                epsilon = clean_and_noise("x0", moment, seen, clean)[1]
        clean = moment.skip * x + moment.out * clean
        x = moment.there.signal * clean + moment.there.noise * epsilon
        if moment.fresh:
            x = x + moment.fresh * left.pop(0)
    return x.astype(noise.dtype)


def clean_latents(sampling: Sampling, x: Array, strength: Array, predict: Call) -> Array:
    """The clean sample [B, C, H, W] that one call says `x` is made of, latents with `strength` [B]
    times unit noise; predict(what the network sees of x) -> its prediction. In fp64 but for the
    network."""
    noise = strength.astype(np.float64).reshape(-1, 1, 1, 1)
    scale = 1 / np.sqrt(1 + noise**2)
    seen = x.astype(np.float64) * scale
    said = predict(seen.astype(x.dtype)).astype(np.float64)
    clean = {
        "x0": said, "epsilon": (seen - scale * noise * said) / scale,
        "v": scale * seen - scale * noise * said,
    }[sampling.prediction]  # fmt: skip
    if sampling.clip:
        clean = np.clip(clean, -sampling.clip, sampling.clip)
    return clean.astype(x.dtype)


def by_scale(noise: Array, scales: int) -> list[Array]:
    """Unit noise [B, C, H, W] as each scale's own, the coarsest first: unit noise, and behind it
    noise that is 0 on average in every block of 2 x 2, with a covariance of 1 and -1/3 (Jin et al.,
    2410.05954, equation 15). All are independent, as white noise and its blocks' averages are."""
    finer: list[Array] = []
    for _ in range(scales - 1):
        *sizes, height, width = noise.shape
        blocks = noise.reshape(*sizes, height // 2, 2, width // 2, 2).mean((-3, -1))
        finer.append((noise - _doubled(blocks)) * (2 / np.sqrt(3)))
        noise = blocks * 2
    return [noise, *reversed(finer)]


def _doubled(x: Array) -> Array:
    """Every place of [B, C, H, W] as a block of 2 x 2."""
    return x.repeat(2, -2).repeat(2, -1)


def first_places(shape: Sequence[int], count: int) -> npt.NDArray[np.bool_]:
    """[1, 1, H, W]: whether a place of a sample [B, C, H, W] is among the first, row after row."""
    height, width = shape[-2:]
    return (np.arange(height * width) < count).reshape(1, 1, height, width)


def fresh_steps(sampling: Sampling) -> tuple[int, ...]:
    """The steps that add new noise."""
    moments = trajectory(sampling).moments
    return tuple(step for step, moment in enumerate(moments) if moment.fresh)


def guided(scale: float, conditional: Array, unconditional: Array) -> Array:
    """Classifier-free guidance of two predictions (Ho and Salimans, 2207.12598)."""
    both = conditional.astype(np.float64), unconditional.astype(np.float64)
    return (both[1] + scale * (both[0] - both[1])).astype(conditional.dtype)


def clean_and_noise(kind: Prediction, moment: Moment, x: Any, said: Any) -> tuple[Any, Any]:
    """The clean sample and the noise that a prediction says `x` is made of; `x` as the network saw
    it. Arrays of numpy, or torch's tensors."""
    signal, noise = moment.here.signal * moment.scale, moment.here.noise * moment.scale
    if kind == "epsilon":
        return (x - noise * said) / signal, said
    if kind == "x0":
        return said, (x - signal * said) / noise
    if kind == "v":
        return signal * x - noise * said, noise * x + signal * said
    return x - noise * said, x + signal * said
