"""DSpark: a block in which each token is scored by the one before it, and says how sure it is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Self

from graftline.errors import GraftlineError
from graftline.runtimes.chances.calibration import Calibration
from graftline.runtimes.drafter import Bid
from graftline.runtimes.drafters.dflash import DFlash
from graftline.runtimes.drafting import Draft
from graftline.runtimes.feature_engine import WalkedScores
from graftline.runtimes.session import Scores
from graftline.tree import Draws


@dataclass
class DSpark(DFlash):
    """DSpark: as `dflash`, with a Markov head that scores each token of a block by the one before
    it. Where the head has a confidence, the draft ends where the chance of its tokens, by how often
    such confidences came true, is not worth a row of the target's step.
    """

    name: ClassVar[str] = "dspark"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.sampled:
            raise GraftlineError("dspark: a head's walk has best tokens only; leave out `sampled`")
        self._sure: list[float] = []
        self._sureness = Calibration()

    def fork(self) -> Self:
        other = super().fork()
        other._sureness = self._sureness
        return other

    def draft(self, bid: Bid) -> Draft:
        self._bid, self._sure = bid, []
        return super().draft(bid)

    def _filled(self, scores: Scores, count: int) -> tuple[list[int], dict[int, Draws]]:
        assert isinstance(scores, WalkedScores), "the head was built with the pass markov"
        tokens, draws = super()._filled(scores, count)
        if scores.confidence is None:
            return tokens, draws
        chance = 1.0
        first, keep = self._first, self._bid.keep
        for sure in scores.confidence[0, first : first + len(tokens)].tolist():
            chance *= self._sureness.of(sure)
            if self._sure and chance < keep[len(self._sure) + 1]:
                break
            self._sure.append(sure)
        return tokens[: len(self._sure)], draws

    def _learn(self, fresh: Sequence[int]) -> int:
        accepted = super()._learn(fresh)
        for place, sure in enumerate(self._sure[: accepted + 1]):
            self._sureness.record(sure, place < accepted)
        self._sure = []
        return accepted
