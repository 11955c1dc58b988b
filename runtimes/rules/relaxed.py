"""Relaxed convergence: a guess stands when it is among the target's best, or nearly."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from graftline.errors import GraftlineError
from graftline.runtimes.acceptance.lenient import Lenient, Place
from graftline.runtimes.resources import Resources
from graftline.runtimes.sampling import Sampling


@dataclass(frozen=True)
class Relaxed:
    """Leaves a fixed-point iteration before it has converged, as CEED-VLA does (arXiv 2506.13725).

    A Jacobi guess has converged when it is the target's best token after the guesses before it.
    Here it need only be one of the k best, or less than `tolerance` below the best logit. CEED-VLA
    leaves the loop at a fixed iteration; this is the same trade per token, whatever the iteration.
    Strict: k = 0, tolerance = 0 (the target's choices only). Loose: tolerance = inf (everything).
    At temperature > 0 it reads the same logits, so the best token always stands from k = 1 on.
    """

    lossless: ClassVar[bool] = False
    k: int = 0
    """Ranks that stand; for greedy requests 1 is as strict as 0."""
    tolerance: float = 0.7
    """Difference to the best logit within which a token stands; 0.7 is half its probability."""

    def __post_init__(self) -> None:
        if self.k < 0 or not self.tolerance >= 0:
            raise GraftlineError(
                f"relaxed: k={self.k}, tolerance={self.tolerance} are not valid; "
                "use k >= 0 and tolerance >= 0"
            )

    def of(
        self, sampling: Sampling, generator: np.random.Generator, resources: Resources
    ) -> Lenient:
        """The rule for these settings."""
        return Lenient(sampling, generator, self.stands)

    def stands(self, place: Place, child: int, token: int) -> bool:
        logits = place.logits
        if logits.max() - logits[token] < self.tolerance:
            return True
        # a token that ties with the best counts it: so at k = 1 it does not stand
        return int(np.count_nonzero(logits >= logits[token])) <= self.k
