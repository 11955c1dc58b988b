"""Stop a draft where the drafter is unsure."""

from __future__ import annotations

from dataclasses import dataclass

from graftline.errors import GraftlineError


@dataclass
class Confidence:
    """Draft while the likeliest token has at least this probability: Kangaroo's second early exit
    (arXiv 2404.18911) and BiLD's fallback policy (arXiv 2302.07863)."""

    threshold: float = 0.5

    def __post_init__(self) -> None:
        if not 0 <= self.threshold <= 1:
            raise GraftlineError(
                f"length confidence: threshold={self.threshold} is not a probability; use 0 to 1"
            )

    def fork(self) -> Confidence:
        return self

    def go_on(self, depth: int, confidence: float, entropy: float) -> bool:
        return confidence >= self.threshold

    def observe(self, accepted: int, offered: int) -> None:
        pass


@dataclass
class Entropy:
    """Draft while the distribution has at most this entropy, in nats. By AdaEDL (arXiv 2410.18351)
    1 - sqrt(scale * entropy) bounds the acceptance from below; a threshold on that bound is one on
    the entropy."""

    threshold: float = 2.0

    def __post_init__(self) -> None:
        if not self.threshold >= 0:
            raise GraftlineError(
                f"length entropy: threshold={self.threshold} nats can never be met; use 0 or more"
            )

    def fork(self) -> Entropy:
        return self

    def go_on(self, depth: int, confidence: float, entropy: float) -> bool:
        return entropy <= self.threshold

    def observe(self, accepted: int, offered: int) -> None:
        pass
