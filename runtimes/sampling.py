"""From logits to the target distribution: temperature, top-k, top-p, min-p.

The order and the meaning of each filter are those of transformers' logits processors.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from graftline.errors import BackendError

Ints = npt.NDArray[np.int64]
Doubles = npt.NDArray[np.float64]
Logits = npt.NDArray[np.floating[Any]]


@dataclass(frozen=True)
class Sampling:
    """How the next token is drawn. `temperature` 0 is greedy; top_k 0, top_p 1, min_p 0 are off."""

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0

    @property
    def greedy(self) -> bool:
        """True when nothing is random."""
        return self.temperature == 0.0

    @property
    def filters(self) -> bool:
        """True when the less likely tokens are left out."""
        return self.top_k > 0 or self.top_p < 1.0 or self.min_p > 0.0

    def distribution(self, logits: Logits) -> tuple[Ints | None, Doubles]:
        """Candidate ids (None: the whole vocabulary, in order) and their probabilities.

        Raises BackendError when the logits hold NaN: a draw from them would mean nothing.
        """
        scaled = logits.astype(np.float64) / self.temperature
        ids: Ints | None = None
        if 0 < self.top_k < len(scaled):
            ids = np.argpartition(scaled, -self.top_k)[-self.top_k :]
            ids.sort()
            scaled = scaled[ids]
        peak = scaled.max()
        if not np.isfinite(peak):
            raise BackendError(f"the backend returned a largest logit of {peak}; nothing to sample")
        probs: Doubles = np.exp(scaled - peak)
        probs /= probs.sum()
        if self.top_p < 1.0:
            ids, probs = _keep(ids, probs, _nucleus(probs, self.top_p))
        if self.min_p > 0.0:
            ids, probs = _keep(ids, probs, np.flatnonzero(probs >= self.min_p * probs.max()))
        return ids, probs

    def draw(self, logits: Logits, uniform: float) -> int:
        """The token at quantile `uniform` in [0, 1) of the target distribution."""
        ids, probs = self.distribution(logits)
        cumulative = np.cumsum(probs)
        place = int(np.searchsorted(cumulative, uniform * cumulative[-1], side="right"))
        place = min(place, int(np.flatnonzero(probs)[-1]))
        return place if ids is None else int(ids[place])


def _keep(ids: Ints | None, probs: Doubles, kept: Ints) -> tuple[Ints, Doubles]:
    chosen = probs[kept]
    return (kept if ids is None else ids[kept]), chosen / chosen.sum()


def _nucleus(probs: Doubles, mass: float) -> Ints:
    """The fewest most likely places whose probabilities reach `mass`, ascending.

    Only as many places are sorted as are needed: a full sort of a vocabulary takes milliseconds.
    """
    width = min(256, len(probs))
    while True:
        if width < len(probs):
            best = np.argpartition(probs, -width)[-width:]
        else:
            best = np.arange(len(probs))
        best = best[np.argsort(-probs[best], kind="stable")]
        cumulative = np.cumsum(probs[best])
        if cumulative[-1] >= mass or width == len(probs):
            return np.sort(best[: int(np.searchsorted(cumulative, mass, side="left")) + 1])
        width = min(width * 8, len(probs))
