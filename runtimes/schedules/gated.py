"""MLPs skipped by every token for itself, once they add little to it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from graftline.errors import GraftlineError
from graftline.runtimes.schedules.schedule import Schedule


@dataclass(frozen=True)
class Gated(Schedule):
    """FFN-SkipLLM (arXiv 2404.03865): a token passes by the MLPs behind the first that hardly
    changes the direction of its residual stream; attention is always computed.

    1. The prompt is read by the whole model, and so are the first `warm_up` steps: what stands at
       the beginning of a text is what later tokens attend to most.
    2. From then on the graph itself decides, token by token: see the pass gate-mlp, whose options
       `first`, `last` and `speedup` are.

    Every block has keys and values of every position, so that a text may go on by the whole model
    at any step.
    """

    name: ClassVar[str] = "gated"
    prompt: ClassVar[int] = 0
    lowering: ClassVar[str] = "select-mlp-rows"

    speedup: float = 1.15
    first: int = 2
    last: int = 2
    warm_up: int = 8

    def check(self) -> None:
        if not self.speedup > 1:
            raise GraftlineError(f"a speed-up of {self.speedup:g} skips nothing; use one above 1")
        if self.warm_up < 0:
            raise GraftlineError(f"warm_up is a number of steps, 0 or more, not {self.warm_up}")

    def passes(self) -> tuple[str, ...]:
        options = f"speedup={self.speedup:g},first={self.first},last={self.last}"
        return (f"gate-mlp{{{options}}}",)

    def route(self, step: int, routes: int) -> int:
        return int(step >= self.warm_up)

    def told(self) -> str:
        return f"gated: from step {self.warm_up} on, no MLP where the last has changed little"
