"""A small residual network in numpy: what the trained length policies decide with."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from graftline.errors import GraftlineError
from graftline.tree import Doubles

Loss = Callable[[Doubles], Doubles]
"""From outputs [n, K] the gradient [n, K] of the mean loss."""


@dataclass(frozen=True)
class Network:
    """Features [n, F], standardised, to outputs [n, K]: h = silu(x A + a), h += silu(h B + b),
    h C + c. A residual block, as in SpecDec++'s acceptance head (arXiv 2405.19715).
    """

    mean: Doubles
    scale: Doubles
    weights: tuple[Doubles, ...]
    """A [F, H], a [H], B [H, H], b [H], C [H, K], c [K]."""

    def __call__(self, features: Doubles) -> Doubles:
        return _forward(self.weights, (features - self.mean) / self.scale)[-1]

    def to_json(self) -> dict[str, Any]:
        """Lists of numbers."""
        return {
            "mean": self.mean.tolist(),
            "scale": self.scale.tolist(),
            "weights": [w.tolist() for w in self.weights],
        }

    @classmethod
    def from_json(cls, table: Mapping[str, Any], features: int, outputs: int) -> Network:
        """Inverse of `to_json`. Raises GraftlineError when the shapes are not of such a network."""
        try:
            mean, scale = (np.asarray(table[k], np.float64) for k in ("mean", "scale"))
            weights = tuple(np.asarray(w, np.float64) for w in table["weights"])
            width = len(weights[1])
        except (KeyError, IndexError, TypeError, ValueError) as error:
            raise GraftlineError(f"a tuned network cannot be read ({error}); {_AGAIN}") from error
        found = [w.shape for w in (mean, scale, *weights)]
        wanted = _shapes(features, width, outputs)
        if found != [(features,), (features,), *wanted]:
            raise GraftlineError(f"a tuned network has shapes {found}; {_AGAIN}")
        return cls(mean, scale, weights)


_AGAIN = "run graftline tune again"


def train(
    features: Doubles,
    outputs: int,
    loss: Loss,
    width: int = 16,
    steps: int = 400,
    rate: float = 0.01,
    seed: int = 0,
) -> Network:
    """Adam (arXiv 1412.6980) on all rows at once; one seed gives one network."""
    random = np.random.default_rng(seed)
    mean, scale = features.mean(axis=0), features.std(axis=0)
    scale = np.where(scale > 1e-9, scale, 1.0)
    inputs = (features - mean) / scale
    shapes = _shapes(features.shape[1], width, outputs)
    weights = [
        random.normal(size=s) / np.sqrt(s[0]) if len(s) == 2 else np.zeros(s) for s in shapes
    ]
    first, second = [np.zeros(s) for s in shapes], [np.zeros(s) for s in shapes]
    for step in range(1, steps + 1):
        layers = _forward(tuple(weights), inputs)
        for i, slope in enumerate(_backward(weights, layers, loss(layers[-1]))):
            first[i] = 0.9 * first[i] + 0.1 * slope
            second[i] = 0.999 * second[i] + 0.001 * slope**2
            speed = np.sqrt(second[i] / (1 - 0.999**step)) + 1e-8
            weights[i] = weights[i] - rate * first[i] / (1 - 0.9**step) / speed
    return Network(mean, scale, tuple(weights))


def _shapes(features: int, width: int, outputs: int) -> list[tuple[int, ...]]:
    return [(features, width), (width,), (width, width), (width,), (width, outputs), (outputs,)]


def _forward(weights: tuple[Doubles, ...], x: Doubles) -> tuple[Doubles, ...]:
    """Inputs, u = x A + a, h, v = h B + b, the block's result, and the outputs."""
    u = x @ weights[0] + weights[1]
    h = _silu(u)
    v = h @ weights[2] + weights[3]
    r = h + _silu(v)
    return x, u, h, v, r, r @ weights[4] + weights[5]


def _backward(
    weights: list[Doubles], layers: tuple[Doubles, ...], slope: Doubles
) -> list[Doubles]:
    """Gradients of the weights from that of the outputs."""
    x, u, h, v, r, _ = layers
    down = slope @ weights[4].T
    dv = down * _silu_slope(v)
    du = (down + dv @ weights[2].T) * _silu_slope(u)
    return [x.T @ du, du.sum(0), h.T @ dv, dv.sum(0), r.T @ slope, slope.sum(0)]


def sigmoid(x: Doubles) -> Doubles:
    """1 / (1 + exp(-x)), without overflow."""
    return 0.5 * (1.0 + np.tanh(0.5 * x))


def _silu(x: Doubles) -> Doubles:
    return x * sigmoid(x)


def _silu_slope(x: Doubles) -> Doubles:
    s = sigmoid(x)
    return s * (1.0 + x * (1.0 - s))
