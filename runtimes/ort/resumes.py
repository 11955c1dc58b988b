"""Which rows of the coming step exits have begun, so that only the blocks behind those score them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING

import numpy as np

from graftline.runtimes.ort.step_arrays import Assembly, OutputMemory
from graftline.runtimes.session import Bools, Floats, Ints, Scores
from graftline.tree import Tree

if TYPE_CHECKING:
    from graftline.runtimes.ort.rest import RestSession
    from graftline.runtimes.ort.session import OrtSession


@dataclass(frozen=True)
class Begun:
    """Rows of one sequence that an exit's blocks have computed: those of a `tree` behind the first
    `start` slots, and the hidden states [N, H] that left those blocks. `rest` has the others."""

    rest: RestSession
    start: int
    tree: Tree
    states: Floats

    def of(self, start: int, tokens: Sequence[int], seen: Bools | None) -> bool:
        """Whether rows of these tokens behind so many slots, each of which sees those that `seen`
        [N, N] says (None: all before it), are begun, with all their rows."""
        count = len(tokens)
        if self.start != start or self.tree.token_list[:count] != tokens:
            return False
        if self.tree.is_chain and seen is None:
            return True
        seen = np.tri(count, dtype=np.bool_) if seen is None else seen
        return bool(np.array_equal(self.tree.mask[:count, :count], seen))


class Resumes:
    """A target's chains, of which some were begun. What was begun is of use to the next step alone,
    whatever that scores, and only where it is of the very tokens."""

    def __init__(self, target: OrtSession) -> None:
        self._target = target
        self._begun: dict[int, Begun] = {}
        self._memory = OutputMemory()

    def begin(self, row: int, begun: Begun) -> None:
        """The next step may go on from there, in sequence `row`."""
        self._begun[row] = begun

    def forget(self) -> None:
        """The next step goes on from nowhere."""
        self._begun.clear()

    def score(
        self, tokens: Ints, counts: Sequence[int], depth: Ints | None, mask: Bools | None
    ) -> Scores | None:
        """The scores [B, N] of rows of which some were begun: chains, in as few calls as neighbours
        have the same blocks left, or trees (as in `Session.score`). None where none was."""
        each = enumerate(zip(tokens, counts, strict=True))
        rests = [self._rest(row, part[:count].tolist(), mask) for row, (part, count) in each]
        if all(rest is None for rest in rests):
            return None
        if mask is not None:
            return self._trees(rests, tokens, counts, depth, mask)
        runs = [[*run] for _, run in groupby(range(len(rests)), key=lambda row: id(rests[row]))]
        if len(runs) == 1:
            scores = self._run(rests[0], runs[0], tokens, counts)
        else:
            whole = Assembly(self._memory, *tokens.shape)
            for run in runs:
                found = self._run(rests[run[0]], run, tokens, counts)
                for place, row in enumerate(run):
                    whole.put(row, found, place)
            scores = whole.scores()
        return scores

    def _rest(self, row: int, tokens: list[int], mask: Bools | None) -> RestSession | None:
        """What ends the rows of a sequence; None where all blocks have to."""
        begun, start = self._begun.get(row), int(self._target.lengths[row])
        seen = None if mask is None else mask[row, : len(tokens), : len(tokens)]
        return begun.rest if begun is not None and begun.of(start, tokens, seen) else None

    def _trees(
        self,
        rests: Sequence[RestSession | None],
        tokens: Ints,
        counts: Sequence[int],
        depth: Ints | None,
        mask: Bools,
    ) -> Scores:
        """The scores of trees, a call for each sequence."""

        def of(row: int) -> Scores:
            rest, count = rests[row], counts[row]
            if rest is None:
                return self._target.tree(row, tokens, depth, mask, count)
            begun, size = self._begun[row], slice(count)
            tree = begun.tree.depth[size], mask[row, size, size]
            return rest.resume_tree(row, begun.start, begun.states[size], *tree)

        if len(rests) == 1:
            return of(0)
        whole = Assembly(self._memory, *tokens.shape)
        for row in range(len(rests)):
            whole.put(row, of(row), 0)
        return whole.scores()

    def _run(
        self, rest: RestSession | None, run: Sequence[int], tokens: Ints, counts: Sequence[int]
    ) -> Scores:
        """The scores of neighbouring sequences with the same blocks left."""
        rows = slice(run[0], run[-1] + 1)
        if rest is None:
            return self._target.chains(run[0], tokens[rows], counts[rows])
        states = [self._begun[row].states[: counts[row]] for row in run]
        return rest.resume(run[0], [self._begun[row].start for row in run], states)
