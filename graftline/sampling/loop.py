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


def draw(sampling: Sampling, noise: Array, fresh: Sequence[Array], predict: Predict) -> Array:
    """The sample [B, C, H, W] that the loop makes of unit noise; `fresh` is the unit noise that
    each step adds, as `fresh_steps` counts it. In fp64 but for the network."""
    path = trajectory(sampling)
    x, left = noise.astype(np.float64) * path.start, list(fresh)
    for moment in path.moments:
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
