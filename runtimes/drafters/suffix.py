"""Suffix automaton over prompt and output: the most frequent continuation of the longest match."""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np

from graftline.errors import GraftlineError
from graftline.runtimes.drafter import match_class, match_prior
from graftline.runtimes.session import Scores
from graftline.runtimes.verdict import Verdict
from graftline.tree import Tree

_CLIMB = 64
"""Most suffix links climbed to count one occurrence; only degenerate repetition has more."""


class SuffixAutomaton:
    """The online suffix automaton of Blumer et al. (1985), with occurrence counts.

    State 0 is the empty string. `longest[s]` is the length of the longest string of state s,
    `link[s]` the state of its longest suffix in another state, `count[s]` its occurrences so far.
    """

    def __init__(self) -> None:
        self.longest = [0]
        self.link = [-1]
        self.after: list[dict[int, int]] = [{}]
        self.count = [0]
        self.last = 0

    def extend(self, token: int) -> None:
        """Append one token; amortised constant time."""
        longest, link, after = self.longest, self.link, self.after
        state = self._new(longest[self.last] + 1, {})
        walk = self.last
        while walk >= 0 and token not in after[walk]:
            after[walk][token] = state
            walk = link[walk]
        if walk < 0:
            link[state] = 0
        else:
            target = after[walk][token]
            if longest[walk] + 1 != longest[target]:
                target = self._split(walk, token, target)
            link[state] = target
        self.last = state
        self._occurred(state)

    def match(self) -> int:
        """The state of the longest suffix that occurred before; 0 when there is none."""
        return max(self.link[self.last], 0)

    def _new(self, longest: int, after: dict[int, int]) -> int:
        self.longest.append(longest)
        self.link.append(-1)
        self.after.append(after)
        self.count.append(0)
        return len(self.longest) - 1

    def _split(self, walk: int, token: int, target: int) -> int:
        """Give the strings of `target` that also end elsewhere a state of their own."""
        clone = self._new(self.longest[walk] + 1, dict(self.after[target]))
        self.count[clone] = self.count[target]
        self.link[clone] = self.link[target]
        self.link[target] = clone
        while walk >= 0 and self.after[walk].get(token) == target:
            self.after[walk][token] = clone
            walk = self.link[walk]
        return clone

    def _occurred(self, state: int) -> None:
        for _ in range(_CLIMB):
            if state <= 0:
                return
            self.count[state] += 1
            state = self.link[state]


@dataclass
class Suffix:
    """SuffixDecoding (arXiv 2411.04975) over the request's own prompt and output.

    Follows the automaton from the longest earlier match, the most frequent token first; where an
    occurrence ends with the context, from the match's longest proper suffix that goes on.
    """

    branching: ClassVar[bool] = True
    rows: int = 32
    shortest: int = 1
    """Shortest match that may propose."""
    branch: bool = False
    """Propose trees, best first by the product of relative counts; else chains."""
    signal: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        if self.rows < 2 or self.shortest < 1:
            raise GraftlineError(
                f"suffix: rows={self.rows}, shortest={self.shortest} are not valid; "
                "use rows >= 2 and shortest >= 1"
            )
        self._priors = [match_prior(signal, self.rows) for signal in range(8)]
        self.start(())

    def fork(self) -> Suffix:
        return Suffix(self.rows, self.shortest, self.branch)

    def start(self, context: Sequence[int]) -> None:
        self._automaton = SuffixAutomaton()
        self._last = 0
        for token in context:
            self._append(int(token))

    def propose(self, budget: int) -> Tree:
        state = self._automaton.match()
        length = self._automaton.longest[state]
        count = min(budget, self.rows)
        self.signal = match_class(length) if length >= self.shortest else 0
        if not self.signal or count < 2:
            return Tree.chain((self._last,))
        return self._tree(state, count) if self.branch else self._chain(state, count)

    def observe(self, tree: Tree, verdict: Verdict, scores: Scores, row: int) -> None:
        for token in verdict.tokens(tree):
            self._append(token)

    def prior(self, signal: int) -> Sequence[float]:
        return self._priors[signal]

    def _append(self, token: int) -> None:
        self._automaton.extend(token)
        self._last = token

    def _going_on(self, state: int) -> int:
        """`state`, or its longest suffix that has a continuation; 0 when too short a one."""
        automaton = self._automaton
        while state > 0 and not automaton.after[state]:
            state = automaton.link[state]
        return state if state > 0 and automaton.longest[state] >= self.shortest else 0

    def _chain(self, state: int, rows: int) -> Tree:
        after, count = self._automaton.after, self._automaton.count
        tokens = [self._last]
        while len(tokens) < rows and (state := self._going_on(state)):
            followers = after[state]
            token = next(iter(followers))
            if len(followers) > 1:
                token = max(followers, key=lambda t: (count[followers[t]], followers[t]))
            tokens.append(token)
            state = followers[token]
        return Tree.chain(tokens)

    def _tree(self, state: int, rows: int) -> Tree:
        """Best first: the open node of the largest estimated chance becomes the next row."""
        after, count = self._automaton.after, self._automaton.count
        tokens, parents = [self._last], [-1]
        heap: list[tuple[float, int, int, int]] = []  # -chance, state reached, token, parent row

        def open_children(row: int, state: int, chance: float) -> None:
            followers = after[self._going_on(state)] if self._going_on(state) else {}
            total = sum(count[s] for s in followers.values())
            best = heapq.nlargest(4, followers, key=lambda t: (count[followers[t]], followers[t]))
            for token in best:
                reached = followers[token]
                weight = chance * count[reached] / max(total, 1)
                heapq.heappush(heap, (-weight, -reached, token, row))

        open_children(0, state, 1.0)
        while heap and len(tokens) < rows:
            weight, reached, token, parent = heapq.heappop(heap)
            tokens.append(token)
            parents.append(parent)
            open_children(len(tokens) - 1, -reached, -weight * 0.95)
        return Tree(np.asarray(tokens, np.int64), np.asarray(parents, np.int64))
