"""One route for the whole of a text, which its prompt chooses."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import ClassVar

from graftline.errors import GraftlineError
from graftline.runtimes.schedules.schedule import Schedule
from graftline.runtimes.session import Floats


@dataclass(frozen=True)
class Routed(Schedule):
    """FiRST (arXiv 2410.12513): routers, read once at the end of the prompt, say which blocks this
    text needs; what it does not need is skipped from the first step to the last.

    1. The prompt is read by the whole model, so that every block has its keys and values.
    2. A block may be skipped where its router says less than `threshold`. Not every set of blocks
       has a graph: of those that a bundle has, a text takes the one that skips most blocks and none
       that may not be skipped; where there is none, the whole model.
    3. A block that is skipped at one step is skipped at all, so that no step reads a slot that
       holds nothing; sequences that take the same route share a call.

    `routes` are the blocks that each of them skips, as layer-skip names them, joined by commas; a
    bundle has those of its routers' files.
    """

    name: ClassVar[str] = "routed"
    prompt: ClassVar[int] = 0
    lowering: ClassVar[str] = ""

    threshold: float = 0.5
    routes: str = ""

    def check(self) -> None:
        if not 0 < self.threshold < 1:
            raise GraftlineError(
                f"a threshold of {self.threshold:g} is no chance that a block is needed; use one "
                "between 0 and 1"
            )

    def passes(self) -> tuple[str, ...]:
        return tuple(f"layer-skip{{layers={one}}}" for one in filter(None, self.routes.split(",")))

    def route(self, step: int, routes: int) -> int:
        """The whole model, until a prompt has chosen."""
        return 0

    def courses(self, routes: int) -> Sequence[int]:
        return range(1, routes + 1)

    def choose(self, needed: Callable[[], Floats], skipped: Sequence[Collection[int]]) -> int:
        """The route that skips most blocks, and none that its routers need."""
        free = {block for block, chance in enumerate(needed().tolist()) if chance < self.threshold}
        able = [number for number, blocks in enumerate(skipped, 1) if free.issuperset(blocks)]
        return max(able, key=lambda number: len(skipped[number - 1]), default=0)

    def told(self) -> str:
        return "routed: the prompt's routers choose the blocks that its text skips"
