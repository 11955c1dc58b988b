"""A target's exit, opened: its first blocks draft, and what they have computed is kept."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from graftline.runtimes.draft_engine import DraftEngine
from graftline.runtimes.ort.rest import RestSession
from graftline.runtimes.ort.resumes import Begun, Resumes
from graftline.runtimes.session import Floats, Tap
from graftline.tree import Tree

RestCost = Callable[[int, float, int], float]


@dataclass(frozen=True)
class Exit:
    """The first `blocks` blocks as a draft, on the target's caches, and the `rest` behind them."""

    blocks: int
    engine: DraftEngine
    rest: RestSession
    rest_cost: RestCost
    """Milliseconds of the rest, on the scale of the target's costs, by rows in all, committed
    positions of each sequence, and sequences."""
    resumes: Resumes
    head: RestSession | None = None
    """The target's norm and head alone, for hidden states of any exit, in bundles whose recipe
    chooses among exits."""

    adapted: bool = False
    """Whether an adapter with a cache of its own stands between its blocks and the head."""

    @property
    def tap(self) -> Tap:
        """Its hidden states, from which the rest goes on."""
        return self.rest.reads

    def begun(self, row: int, start: int, tree: Tree, states: Floats) -> None:
        """The rows of a tree behind the first `start` slots of a sequence have gone through its
        blocks, which hidden states [N, H] left: the target's next step, if it is of them, need not
        compute that again."""
        self.resumes.begin(row, Begun(self.rest, start, tree, states))
