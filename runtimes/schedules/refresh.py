"""Some blocks passed by, and computed again every few tokens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from graftline.errors import GraftlineError
from graftline.runtimes.schedules.schedule import Schedule


@dataclass(frozen=True)
class Refresh(Schedule):
    """LoRA-Drop (arXiv 2601.02569): of every `cycle` tokens one is computed by all blocks, and the
    others pass by those that have low-rank corrections.

    1. The prompt is read by the whole model, and so is the first token behind it. Whatever computes
       all blocks leaves the states that those behind it start from.
    2. A token that passes blocks by leaves neither keys nor values in their caches: later tokens,
       those of the whole model too, do not see it there.
    """

    name: ClassVar[str] = "refresh"
    prompt: ClassVar[int] = 0
    lowering: ClassVar[str] = ""

    cycle: int = 4

    def check(self) -> None:
        if self.cycle < 2:
            raise GraftlineError(
                f"a cycle of {self.cycle} tokens passes no block by; use 2 or more, of which one "
                "is computed by all blocks"
            )

    def passes(self) -> tuple[str, ...]:
        return ("skip-substitute",)

    def route(self, step: int, routes: int) -> int:
        return int(step % self.cycle > 0)

    def told(self) -> str:
        return f"refresh: all blocks for one token of {self.cycle}, corrections for the others"
