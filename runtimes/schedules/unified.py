"""The same blocks skipped for every token of every input."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from graftline.errors import GraftlineError
from graftline.runtimes.schedules.schedule import Schedule


@dataclass(frozen=True)
class Unified(Schedule):
    """Unified Layer Skipping (arXiv 2404.06954): how many blocks are skipped follows from the
    speed-up alone. They are evenly spread, and the same for all inputs, so that sequences decode
    together as ever.

    The prompt is read on the same route: a skipped block has neither keys nor values, of any
    position, and what is left is a smaller model.
    """

    name: ClassVar[str] = "unified"
    prompt: ClassVar[int] = 1
    lowering: ClassVar[str] = ""

    speedup: float = 1.5

    def check(self) -> None:
        if not self.speedup > 1:
            raise GraftlineError(f"a speed-up of {self.speedup:g} skips nothing; use one above 1")

    def passes(self) -> tuple[str, ...]:
        return (f"layer-skip{{speedup={self.speedup:g}}}",)

    def route(self, step: int, routes: int) -> int:
        return 1

    def told(self) -> str:
        return "unified: every token on the same route"
