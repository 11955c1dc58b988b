"""SpecKV: a small network picks the length of the whole draft before it is drafted."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from graftline.errors import GraftlineError
from graftline.runtimes.lengths.network import Network, train
from graftline.runtimes.lengths.recorded import Draft
from graftline.runtimes.resources import missing
from graftline.tree import Doubles

KEY = "speckv"
CLASSES = (0, 1, 2, 3, 4, 6, 8, 12, 16)
"""Lengths to choose from."""


@dataclass
class LengthClass:
    """SpecKV: from the drafter's confidence and entropy a network picks this step's length. How
    much a length pays depends on the target's precision, so the network is trained per bundle."""

    network: Network | None = field(default=None, init=False, repr=False)

    def __post_init__(self) -> None:
        self._length = 0

    def equip(self, tuned: Mapping[str, Any] | None) -> None:
        """Take the trained network. Raises GraftlineError when there is none."""
        known = (tuned or {}).get("lengths", {})
        if KEY not in known:
            raise missing("length speckv", "tuned")
        self.network = Network.from_json(known[KEY], features=2, outputs=len(CLASSES))

    def fork(self) -> LengthClass:
        other = LengthClass()
        other.network = self.network
        return other

    def go_on(self, depth: int, confidence: float, entropy: float) -> bool:
        assert self.network is not None, "a trained length is equipped before it is used"
        if depth == 0:
            scores = self.network(np.asarray([[confidence, entropy]], np.float64))[0]
            self._length = CLASSES[int(scores.argmax())]
        return depth < self._length

    def observe(self, accepted: int, offered: int) -> None:
        pass


def train_length_class(
    drafts: Sequence[Draft], cost: Callable[[int], float], seed: int = 0
) -> Network:
    """From recorded drafts, `cost(n)` milliseconds of a step whose draft has n tokens.

    A draft whose token was rejected tells what every length would have given: min(accepted, n) + 1
    tokens. What lies past one accepted whole is unknown and counts as rejected, so record drafts
    that are long. The network maximises the mean of tokens - rate * cost, where `rate` is the best
    fixed length's tokens per millisecond: what is gained over that length. Raises GraftlineError
    without drafts.
    """
    if not drafts:
        raise GraftlineError(
            "speckv cannot be trained: no drafts were recorded; tune on more prompts"
        )
    prices = np.asarray([cost(n) for n in CLASSES], np.float64)
    accepted = np.asarray([d.accepted for d in drafts], np.float64)[:, None]
    tokens = np.minimum(accepted, np.asarray(CLASSES)) + 1.0
    rate = float((tokens.mean(axis=0) / prices).max())
    gain = tokens - rate * prices

    def slope(outputs: Doubles) -> Doubles:
        share = np.exp(outputs - outputs.max(axis=1, keepdims=True))
        share /= share.sum(axis=1, keepdims=True)
        mean = (share * gain).sum(axis=1, keepdims=True)
        return -share * (gain - mean) / len(drafts)

    first = np.asarray([d.steps[0] for d in drafts], np.float64)
    return train(first, len(CLASSES), slope, seed=seed)
