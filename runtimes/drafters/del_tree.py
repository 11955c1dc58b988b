"""DEL over trees: of several exits, the one whose trees are worth most, and how large they are."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, Self

from graftline.runtimes.chances.head_chances import HeadChances
from graftline.runtimes.drafters.del_exits import Del
from graftline.runtimes.drafters.exit_tree import ExitTree


@dataclass
class DelTree(Del, ExitTree):
    """DEL (arXiv 2504.05598), whose exit drafts EAGLE-2's tree (arXiv 2406.16858) wherever the
    target scores trees: the exit and the size by which the best tree of its acceptances, of each
    rank, expects most tokens per millisecond. The tree itself grows by what that exit says
    (`ExitTree`), and is a chain where no branch is worth its rows."""

    name: ClassVar[str] = "del-tree"
    rows: int = 16
    _by_exit: dict[int, HeadChances] = field(
        default_factory=dict[int, HeadChances], init=False, repr=False
    )
    """What the candidates of each exit have come to, by its blocks."""

    @property
    def _candidates(self) -> int:
        return self.width

    def fork(self) -> Self:
        other = super().fork()
        other._by_exit = self._by_exit
        other._choose()
        return other

    def _choose(self) -> None:
        super()._choose()
        self.ranks = self._by_exit.setdefault(self._exit.way.blocks, self._new_ranks())
