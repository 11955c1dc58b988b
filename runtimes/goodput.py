"""Goodput: choose each step's number of rows by expected tokens per millisecond, none included."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Protocol

from graftline.errors import BundleError
from graftline.tree import Tree


@dataclass(frozen=True)
class Costs:
    """Milliseconds of one step of q rows: `chain` with the causal mask, `tree` with a tree mask."""

    chain: dict[int, float]
    tree: dict[int, float]

    def __post_init__(self) -> None:
        if 1 not in self.chain or any(c <= 0 for c in (self.chain | self.tree).values()):
            raise BundleError("step costs need a chain of 1 row and positive times; measure again")

    def of(self, rows: int, branching: bool = False) -> float:
        """The cost of `rows` rows, linear between measured sizes and past the last.

        Without measured trees a tree costs what a chain does. One row is never a tree.
        """
        known = self.tree | {1: self.chain[1]} if branching and self.tree else self.chain
        if rows in known:
            return known[rows]
        sizes = sorted(known)
        if len(sizes) == 1:
            return known[1] * rows
        above = next((i for i, size in enumerate(sizes) if size > rows), len(sizes) - 1)
        low, high = sizes[above - 1], sizes[above]
        slope = (known[high] - known[low]) / (high - low)
        return max(known[low] + slope * (rows - low), known[1])

    def to_json(self) -> dict[str, dict[str, float]]:
        """With string keys, as JSON has them."""
        return {
            "chain": {str(rows): ms for rows, ms in self.chain.items()},
            "tree": {str(rows): ms for rows, ms in self.tree.items()},
        }

    @classmethod
    def from_json(cls, table: Mapping[str, Mapping[str, float]]) -> Costs:
        """Inverse of `to_json`. Raises BundleError when the table is of another form."""
        try:
            chain, tree = ({int(q): float(ms) for q, ms in table[k].items()} for k in _KINDS)
        except (KeyError, ValueError, TypeError, AttributeError) as error:
            raise BundleError(f"step costs cannot be read ({error}); measure again") from error
        return cls(chain, tree)


_KINDS = ("chain", "tree")


class Pacer(Protocol):
    """Chooses how many rows a step scores, for all sequences of a batch alike."""

    def begin(self, batch: int) -> None:
        """A new request of `batch` sequences starts."""
        ...

    def choose(self, proposals: Sequence[tuple[int, Tree]], room: int) -> int:
        """Rows of this step, 1 to `room`, given every live sequence's signal and proposal."""
        ...

    def learn(self, sequence: int, fresh: Sequence[int]) -> None:
        """The live sequence at that place of the batch emitted `fresh`."""
        ...


class Fixed:
    """Always as many rows as proposed, up to `rows`: what is done when costs are unknown."""

    def __init__(self, rows: int = 8) -> None:
        self.rows = rows

    def begin(self, batch: int) -> None:
        pass

    def choose(self, proposals: Sequence[tuple[int, Tree]], room: int) -> int:
        return max(1, min(room, self.rows, max((len(t) for _, t in proposals), default=1)))

    def learn(self, sequence: int, fresh: Sequence[int]) -> None:
        pass


class Walk:
    """A proposal followed along what was then emitted, whether or not it was ever scored."""

    __slots__ = ("decided", "node", "parents", "signal", "tokens")

    def __init__(self, signal: int, tree: Tree) -> None:
        self.signal = signal
        self.tokens: list[int] = tree.tokens.tolist()
        self.parents: list[int] = tree.parents.tolist()
        self.node = 0
        self.decided = 1
        """Rows before this one are known to be accepted or not."""

    def step(self, token: int) -> bool:
        """Move to the child that carries `token`; false when none does."""
        tokens, parents, node = self.tokens, self.parents, self.node
        for child in range(node + 1, len(tokens)):
            if tokens[child] == token and parents[child] == node:
                self.node = child
                return True
        return False


class Evidence:
    """How often each row of proposals of one class was accepted, forgetting exponentially.

    The estimate of a row starts from the estimate of the row before, times the prior's ratio: what
    is learned about the first rows carries to rows that were seldom reached.
    """

    def __init__(self, prior: Sequence[float], horizon: float, weight: float) -> None:
        self._ratio = [1.0, *(b / a if a > 0 else 0.0 for a, b in pairwise(prior))]
        self._keep, self._weight = 1.0 - 1.0 / horizon, weight
        self._hits, self._trials = [0.0] * len(prior), [0.0] * len(prior)
        self._reach: list[float] | None = None

    def record(self, first: int, last: int, hit: bool) -> None:
        """Rows first .. last were offered; `last` was accepted if `hit`, the others were not."""
        hits, trials, keep = self._hits, self._trials, self._keep
        last = min(last, len(hits) - 1)
        for row in range(first, last + 1):
            trials[row] = trials[row] * keep + 1.0
            hits[row] *= keep
        if hit and first <= last:
            hits[last] += 1.0
        self._reach = None

    def fade(self, most: float) -> None:
        """Weigh what is known as `most` trials at most."""
        for row, trials in enumerate(self._trials):
            if trials > most:
                self._hits[row] *= most / trials
                self._trials[row] = most
        self._reach = None

    def reach(self) -> list[float]:
        """For every row the chance that it is accepted; the root's is 1."""
        if self._reach is None:
            before, reach, weight = 1.0, [1.0], self._weight
            rows = zip(self._hits[1:], self._trials[1:], self._ratio[1:], strict=True)
            for hits, trials, ratio in rows:
                before = (hits + weight * before * ratio) / (trials + weight)
                reach.append(before)
            self._reach = reach
        return self._reach


class Goodput:
    """Maximises expected tokens over the cost of the step.

    Exploring costs nothing: every proposal, scored or not, is followed along the tokens that come
    anyway, and whether each of its rows would have been accepted is counted per class of proposal
    (`Drafter.signal`). So a drafter that loses is left at once, and taken up again at once when its
    unscored proposals come true. `gain` is the least expected gain for which one speculates; a step
    of B sequences with q rows each is taken to cost what one of B * q rows does.
    """

    def __init__(
        self,
        costs: Costs,
        prior: Callable[[int], Sequence[float]],
        branching: bool,
        gain: float = 1.03,
        horizon: float = 48.0,
        weight: float = 5.0,
        open_walks: int = 4,
    ) -> None:
        self._costs, self._prior, self._branching = costs, prior, branching
        self._gain, self._horizon, self._weight = gain, horizon, weight
        self._open = open_walks
        self._evidence: dict[int, Evidence] = {}
        self._walks: list[list[Walk]] = []
        self._steps: list[float] = []

    def begin(self, batch: int) -> None:
        for evidence in self._evidence.values():
            evidence.fade(12.0)
        self._walks = [[] for _ in range(batch)]
        self._steps = []
        self._batch = batch

    def choose(self, proposals: Sequence[tuple[int, Tree]], room: int) -> int:
        """Proposals come in the order of the batch; a finished sequence's is its root alone."""
        most = 1
        for sequence, (signal, tree) in enumerate(proposals):
            if len(tree) > 1:
                most = max(most, len(tree))
                walks = self._walks[sequence]
                if len(walks) < self._open:
                    walks.append(Walk(signal, tree))
        if most == 1:
            return 1
        chances = [(self._of(s).reach(), len(t)) for s, t in proposals if len(t) > 1]
        expected = float(len(proposals))
        best, rate = 1, expected / self._cost(1) * self._gain
        for row in range(1, min(most, room)):
            for reach, size in chances:
                if row < size and row < len(reach):
                    expected += reach[row]
            candidate = expected / self._cost(row + 1)
            if candidate > rate:
                best, rate = row + 1, candidate
        return best

    def learn(self, sequence: int, fresh: Sequence[int]) -> None:
        walks = self._walks[sequence]
        if walks:
            self._walks[sequence] = [walk for walk in walks if self._follow(walk, fresh)]

    def _follow(self, walk: Walk, fresh: Sequence[int]) -> bool:
        """Advance a walk and record what it decides; false when it is over."""
        evidence = self._of(walk.signal)
        for token in fresh:
            if not walk.step(token):
                evidence.record(walk.decided, len(walk.tokens) - 1, hit=False)
                return False
            evidence.record(walk.decided, walk.node, hit=True)
            walk.decided = walk.node + 1
        return walk.decided < len(walk.tokens)

    def _of(self, signal: int) -> Evidence:
        if signal not in self._evidence:
            prior = self._prior(signal)
            self._evidence[signal] = Evidence(prior, self._horizon, self._weight)
        return self._evidence[signal]

    def _cost(self, rows: int) -> float:
        """Milliseconds of a step of the whole batch with `rows` rows each."""
        while len(self._steps) < rows:
            q = len(self._steps) + 1
            branching = self._branching and q > 1
            self._steps.append(self._costs.of(self._batch * q, branching))
        return self._steps[rows - 1]
