"""Decoding whose texts are given and whose steps take what a function of true costs says."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from graftline.runtimes.decoding import Decoding
from graftline.runtimes.drafter import Drafter
from graftline.runtimes.joint_step import JointStep
from graftline.runtimes.lane import Lane
from graftline.runtimes.rules.greedy import Greedy
from graftline.runtimes.session import Scores
from graftline.tree import Tree

Truth = Callable[[Sequence[int], bool], float]
"""Milliseconds of a step by the rows of each sequence, branching or not."""


def scores_of(tokens: list[int]) -> Scores:
    """Of one sequence whose rows choose these tokens."""
    return Scores(np.asarray([tokens]), np.broadcast_to(np.float32(0), (1, len(tokens), 10**6)))


@dataclass
class Simulation:
    """Texts decoded one batch after another, by one or more recipes' controls."""

    true: Truth
    spent: float = 0.0
    tokens: int = 0
    rows: list[list[int]] = field(default_factory=list[list[int]])
    """Of every sequence in every step."""
    drafted: int = 0
    """Steps with a draft."""

    def run(
        self,
        lanes: Sequence[tuple[Lane, Drafter]],
        texts: Sequence[tuple[list[int], list[int]]],
    ) -> Simulation:
        """Decode texts, each a prompt and its answer, together, in the lanes by turns."""
        ones: list[tuple[Lane, Decoding, list[int]]] = []
        for place, (prompt, answer) in enumerate(texts):
            lane, drafter = lanes[place % len(lanes)]
            one = Decoding(
                np.asarray(prompt), len(answer), frozenset(), drafter.fork(), Greedy(), seat=place
            )
            lane.join(one)
            one.begin(scores_of([answer[0]]), 0)
            ones.append((lane, one, answer))
        while ones:
            self._step([lane for lane, _ in lanes if lane.members], ones)
            for lane, one, _ in [entry for entry in ones if entry[1].done]:
                lane.leave(one)
            ones = [entry for entry in ones if not entry[1].done]
            for seat, (_, one, _) in enumerate(ones):
                one.seat = seat
        return self

    def _step(
        self, lanes: Sequence[Lane], ones: Sequence[tuple[Lane, Decoding, list[int]]]
    ) -> None:
        step = JointStep(lanes, [one for _, one, _ in ones], 1000, 1)
        step.plan(branches=True)
        rows = [len(tree) for tree in step.trees]
        branching = not all(tree.is_chain for tree in step.trees if len(tree) > 1)
        emitted: list[tuple[Lane, Decoding, list[int]]] = []
        for lane, one, answer in ones:
            tree = step.trees[one.seat]
            fresh = one.judge(tree, scores_of(answers(tree, answer[len(one.tokens) :])), 0)[1]
            assert one.tokens == answer[: len(one.tokens)]
            emitted.append((lane, one, fresh))
        took = self.true(rows, branching)
        self.spent += took
        self.tokens += sum(len(fresh) for _, _, fresh in emitted)
        self.rows.append(rows)
        self.drafted += max(rows) > 1
        step.took(took, emitted)


def answers(tree: Tree, ahead: list[int]) -> list[int]:
    """What each row chooses, where the text goes on with `ahead`."""
    return [ahead[min(int(depth), len(ahead) - 1)] for depth in tree.depth]


