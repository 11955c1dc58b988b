"""No drafts: plain decoding."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from graftline.runtimes.session import Scores
from graftline.runtimes.verdict import Verdict
from graftline.tree import Tree


@dataclass
class NoDrafts:
    """Proposes the root alone, so every step scores one row."""

    branching: ClassVar[bool] = False
    rows: int = field(default=1, init=False)
    signal: int = field(default=0, init=False)
    _last: int = field(default=0, init=False)

    def fork(self) -> NoDrafts:
        return NoDrafts()

    def start(self, context: Sequence[int]) -> None:
        self._last = int(context[-1])

    def propose(self, budget: int) -> Tree:
        return Tree.chain((self._last,))

    def observe(self, tree: Tree, verdict: Verdict, scores: Scores, row: int) -> None:
        self._last = verdict.next

    def prior(self, signal: int) -> Sequence[float]:
        return (1.0,)
