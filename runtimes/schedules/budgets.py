"""Fewer blocks the further a text goes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from graftline.errors import GraftlineError
from graftline.runtimes.schedules.schedule import Schedule


@dataclass(frozen=True)
class Budgets(Schedule):
    """SkipDecode (arXiv 2307.02628): every position has one budget of blocks, the same for all
    sequences, which falls as the text grows.

    1. The prompt is read by the whole model, and so are the first steps.
    2. Over `span` steps the budget falls in as many levels as there are routes, all of the same
       length, each saving the same time more, so that the mean of a whole span is `speedup` times
       as fast. Behind it the last budget stays.
    3. What is saved are blocks from the second upwards. The first block, which prepares the stream,
       and the upper ones are always computed.

    Because budgets never rise, a block that is computed has keys and values of every position
    before, and none is ever computed again. A step's budget goes by how many tokens its own
    sequence has, whoever decodes beside it; sequences with the same budget share a call.
    """

    name: ClassVar[str] = "budgets"
    prompt: ClassVar[int] = 0
    lowering: ClassVar[str] = ""

    speedup: float = 1.25
    levels: int = 3
    span: int = 128

    def check(self) -> None:
        if not 1 < self.speedup < 2:
            raise GraftlineError(
                f"budgets that fall evenly from the whole model make a text more than 1 and less "
                f"than 2 times as fast, not {self.speedup:g}"
            )
        if self.levels < 1 or self.span <= self.levels:
            raise GraftlineError(
                f"{self.levels} levels of budgets in {self.span} steps; use at least 1 level, and "
                "more steps than levels"
            )

    def passes(self) -> tuple[str, ...]:
        """Level k costs 1 - k d of a step, so that the mean of levels 0 to n is 1 / speedup."""
        saved = 2 * (1 - 1 / self.speedup) / self.levels
        gains = (1 / (1 - level * saved) for level in range(1, self.levels + 1))
        return tuple(f"layer-skip{{speedup={gain:.4g},order=lower}}" for gain in gains)

    def route(self, step: int, routes: int) -> int:
        return min(step * (routes + 1) // self.span, routes)

    def told(self) -> str:
        return f"budgets: fewer blocks from step to step, the fewest from step {self.span} on"
