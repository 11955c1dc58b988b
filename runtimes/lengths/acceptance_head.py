"""SpecDec++: stop when a rejection has become too likely."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from graftline.errors import GraftlineError
from graftline.runtimes.lengths.network import Network, sigmoid, train
from graftline.runtimes.lengths.recorded import Draft
from graftline.runtimes.resources import missing
from graftline.tree import Doubles

KEY = "specdec++"
REJECTED = 6.0
"""Weight of a rejected token in the loss, of which there are few; an accepted one weighs 1."""


@dataclass
class AcceptanceHead:
    """SpecDec++ (arXiv 2405.19715): a network predicts each token's acceptance p_i given that those
    before it are accepted, and the draft ends when 1 - p_1 p_2 ... p_i, the chance of at least one
    rejection, exceeds `threshold`.

    The paper's head reads the draft model's hidden state; this one the confidence and the entropy
    of its distribution and the depth, which any drafter has.
    """

    threshold: float = 0.7
    network: Network | None = field(default=None, init=False, repr=False)

    def __post_init__(self) -> None:
        if not 0 < self.threshold < 1:
            raise GraftlineError(
                f"length specdec++: threshold={self.threshold} is not a probability of "
                "rejection; use a number between 0 and 1"
            )
        self._clear = 1.0

    def equip(self, tuned: Mapping[str, Any] | None) -> None:
        """Take the trained network. Raises GraftlineError when there is none."""
        known = (tuned or {}).get("lengths", {})
        if KEY not in known:
            raise missing("length specdec++", "tuned")
        self.network = Network.from_json(known[KEY], features=3, outputs=1)

    def fork(self) -> AcceptanceHead:
        other = AcceptanceHead(self.threshold)
        other.network = self.network
        return other

    def go_on(self, depth: int, confidence: float, entropy: float) -> bool:
        assert self.network is not None, "a trained length is equipped before it is used"
        if depth == 0:
            self._clear = 1.0
        row = np.asarray([[confidence, entropy, depth]], np.float64)
        self._clear *= float(sigmoid(self.network(row))[0, 0])
        return 1.0 - self._clear <= self.threshold

    def observe(self, accepted: int, offered: int) -> None:
        pass


def train_acceptance_head(drafts: Sequence[Draft], seed: int = 0) -> Network:
    """From recorded drafts: every token up to and including the first rejected one is a row.

    Weighted cross-entropy. Raises GraftlineError when no draft was ever accepted or rejected:
    there is nothing to tell apart.
    """
    rows: list[tuple[float, float, float]] = []
    labels: list[float] = []
    for draft in drafts:
        for depth, (confidence, entropy) in enumerate(draft.steps[: draft.accepted + 1]):
            rows.append((confidence, entropy, float(depth)))
            labels.append(float(depth < draft.accepted))
    truth = np.asarray(labels, np.float64)[:, None]
    if not 0 < truth.sum() < len(truth):
        raise GraftlineError(
            f"specdec++ cannot be trained: {int(truth.sum())} of {len(truth)} drafted tokens were "
            "accepted, so there is nothing to tell apart; tune on more prompts"
        )
    weight = np.where(truth > 0, 1.0, REJECTED)
    weight /= weight.sum()

    def slope(outputs: Doubles) -> Doubles:
        return weight * (sigmoid(outputs) - truth)

    return train(np.asarray(rows, np.float64), 1, slope, seed=seed)
