"""What a schedule says: the routes that a bundle needs, and which of them a step takes."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import ClassVar, Protocol

from graftline.runtimes.session import Floats


class Schedule(Protocol):
    """Which graph computes which token of a sequence: 0 is the whole model, 1, 2, ... are routes
    without some of its blocks, over the same caches. Its fields are its options."""

    name: ClassVar[str]
    prompt: ClassVar[int]
    """The graph that reads prompts."""
    lowering: ClassVar[str]
    """The passes of routes behind the backend's lowering; "": none."""

    def check(self) -> None:
        """Raise GraftlineError for options that cannot be."""
        ...

    def passes(self) -> tuple[str, ...]:
        """The passes by which routes 1, 2, ... leave blocks, or parts of them, out."""
        ...

    def route(self, step: int, routes: int) -> int:
        """The graph of step 0, 1, ... behind the prompt, of a bundle with so many routes. A block
        that it computes was computed in all steps before, or hides the slots of those in which it
        was not, so that attention never sees a slot that holds nothing."""
        ...

    def courses(self, routes: int) -> Sequence[int | None]:
        """What `choose` may give beside the whole model, of a bundle with so many routes."""
        return (None,)

    def choose(
        self, needed: Callable[[], Floats], skipped: Sequence[Collection[int]]
    ) -> int | None:
        """The route of a whole text, by what the routers say at the end of its prompt: `needed`
        gives a chance [L] for each block, and route 1, 2, ... leaves out the blocks `skipped`. 0:
        the whole model; None: `route` says it step by step."""
        return None

    def told(self) -> str:
        """What it does, in words."""
        ...
