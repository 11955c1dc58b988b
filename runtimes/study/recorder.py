"""What became of every proposal of a drafter, whether or not it was scored."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol, TypeGuard

from graftline.runtimes.drafter import Drafter
from graftline.runtimes.session import Scores
from graftline.runtimes.trees.packing import trim
from graftline.runtimes.trees.template import Ranks, Template
from graftline.runtimes.verdict import Verdict
from graftline.tree import Tree


class ShapedDrafter(Drafter, Protocol):
    """A drafter that puts ranked candidates into a template."""

    width: int
    """Candidates of a node."""
    plan: Template
    """The template in use."""

    def shape_by(self, plan: Template) -> None:
        """Propose trees of this template."""
        ...


def is_shaped(drafter: Drafter) -> TypeGuard[ShapedDrafter]:
    """True for a drafter that takes a template."""
    return hasattr(drafter, "shape_by")


@dataclass(frozen=True)
class Step:
    """One proposal: its class, its rows, the rows that came true, root left out, and their ranks
    among their siblings."""

    signal: int
    size: int
    nodes: tuple[int, ...]
    ranks: Ranks


class Recorder:
    """Writes down a step for every proposal of `drafter`, at its largest, followed along the tokens
    that were then emitted; itself it proposes the first `rows` of it.

    What was still open when the sequence ended is left out.
    """

    branching: ClassVar[bool] = True

    def __init__(self, drafter: Drafter, rows: int) -> None:
        self.drafter, self.rows, self.signal = drafter, rows, 0
        self.steps: list[Step] = []
        self._open: list[_Walk] = []

    def fork(self) -> Recorder:
        return Recorder(self.drafter.fork(), self.rows)

    def start(self, context: Sequence[int]) -> None:
        self._open = []
        self.drafter.start(context)

    def propose(self, budget: int) -> Tree:
        tree = self.drafter.propose(self.drafter.rows)
        self.signal = self.drafter.signal
        self._open.append(_Walk(self.signal, tree))
        return trim(tree, budget)

    def observe(self, tree: Tree, verdict: Verdict, scores: Scores, row: int) -> None:
        self.drafter.observe(tree, verdict, scores, row)
        for token in verdict.tokens(tree):
            going = [walk for walk in self._open if walk.step(token)]
            if len(going) < len(self._open):
                self.steps += [walk.done() for walk in self._open if walk not in going]
                self._open = going

    def prior(self, signal: int) -> Sequence[float]:
        return self.drafter.prior(signal)


class _Walk:
    """A proposal on its way."""

    def __init__(self, signal: int, tree: Tree) -> None:
        self._signal = signal
        self._tokens: list[int] = tree.tokens.tolist()
        self._parents: list[int] = tree.parents.tolist()
        self._nodes, self._ranks = [0], list[int]()

    def step(self, token: int) -> bool:
        """Move to the child that carries `token`; false when none does."""
        node, rank = self._nodes[-1], 0
        for child in range(node + 1, len(self._tokens)):
            if self._parents[child] == node:
                if self._tokens[child] == token:
                    self._nodes.append(child)
                    self._ranks.append(rank)
                    return True
                rank += 1
        return False

    def done(self) -> Step:
        return Step(
            self._signal, len(self._tokens), tuple(self._nodes[1:]), tuple(self._ranks)
        )
