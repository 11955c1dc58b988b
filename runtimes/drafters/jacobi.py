"""Jacobi windows: guesses for the next positions, all replaced by what the target says of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar, TypeVar

import numpy as np

from graftline.errors import GraftlineError
from graftline.runtimes.session import Scores
from graftline.runtimes.verdict import Verdict
from graftline.tree import Tree

REFILLS = ("copy", "repeat", "random")
_SETTLED_STANDS, _LOOSE_STANDS = 0.4, 0.2
"""Chances, as first believed, of a guess that a pass left as it was, and of any other. Models not
trained for it settle on few (SmolLM2: 0.18 of all first guesses stand)."""
_MOST_SETTLED = 4
Guess = TypeVar("Guess")


def advance(
    window: Sequence[Guess | None], fresh: Sequence[Guess | None], accepted: int, size: int
) -> list[Guess | None]:
    """The window of the next pass, None where there is nothing to guess from.

    window[j] and fresh[j] are about the position j + 1 places after the root: the guess that was
    there, and what row j of this pass says of it; rows that were not scored say nothing. `accepted`
    guesses stood and one token follows them, the new root.
    """
    known = [*fresh, *window[len(fresh) :]]
    moved = known[accepted + 1 :][:size]
    return moved + [None] * (size - len(moved))


class Refill:
    """Where a guess comes from when no pass has said anything of its position.

    `copy`: the token that followed the guess before it when that last occurred in the context,
    else that guess again; `repeat`: always that guess again (neighbours resemble each other, as in
    images); `random`: tokens of the context, chosen anew whenever it grows.
    """

    def __init__(self, kind: str, size: int, seed: int) -> None:
        self._kind, self._size = kind, size
        self._generator = np.random.default_rng(seed)
        self._context: list[int] = []
        self._follower: dict[int, int] = {}
        self._picks: list[int] = []

    def extend(self, tokens: Sequence[int]) -> None:
        """The context has grown by `tokens`."""
        for token in tokens:
            if self._context:
                self._follower[self._context[-1]] = token
            self._context.append(token)
        if self._kind == "random":
            places = self._generator.integers(len(self._context), size=self._size)
            self._picks = [self._context[place] for place in places.tolist()]

    def fill(self, root: int, window: Sequence[int | None]) -> list[int]:
        """The root and the window, its gaps filled from left to right."""
        tokens = [root]
        for place, guess in enumerate(window):
            tokens.append(self._after(tokens[-1], place) if guess is None else guess)
        return tokens

    def _after(self, token: int, place: int) -> int:
        if self._kind == "copy":
            return self._follower.get(token, token)
        return self._picks[place] if self._kind == "random" else token


def check_window(who: str, rows: int, refill: str) -> None:
    """Raise GraftlineError for a window without a guess or an unknown way to refill it."""
    if rows < 2 or refill not in REFILLS:
        raise GraftlineError(
            f"{who}: rows={rows}, refill='{refill}' are not valid; use rows >= 2 and one of "
            f"{', '.join(REFILLS)}"
        )


def window_prior(settled: int, rows: int) -> tuple[float, ...]:
    """Chances of the rows of a window of whose guesses the first `settled` seem to be fixed."""
    chances = [1.0]
    for place in range(rows - 1):
        chances.append(chances[-1] * (_SETTLED_STANDS if place < settled else _LOOSE_STANDS))
    return tuple(chances)


def settled(before: Sequence[int], after: Sequence[int]) -> int:
    """How many leading guesses the pass left as they were, at most 4."""
    count = 0
    for old, new in zip(before, after, strict=False):  # the last row speaks of a new position
        if old != new or count == _MOST_SETTLED:
            break
        count += 1
    return count


@dataclass
class Jacobi:
    """Jacobi decoding (Song et al., arXiv 2002.03629; Santilli et al., arXiv 2305.10427).

    A chain of rows - 1 guesses follows the root. Each pass replaces the guess behind every row by
    the target's best token there, also behind rows that were not accepted: one iteration of the
    fixed-point equation g = argmax p(. | g before it), whose prefix converges by at least a token
    per pass. Guesses are functions of the past, so any exact rule for point masses is exact here.
    The signal is 1 + the number of leading guesses that the last pass left as they were.
    """

    branching: ClassVar[bool] = False
    rows: int = 9
    refill: str = "copy"
    """How the end of the window is filled: copy, repeat or random."""
    seed: int = 0
    signal: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        check_window("jacobi", self.rows, self.refill)
        self._priors = [window_prior(n, self.rows) for n in range(_MOST_SETTLED + 1)]
        self.start((0,))

    def fork(self) -> Jacobi:
        return Jacobi(self.rows, self.refill, self.seed)

    def start(self, context: Sequence[int]) -> None:
        self._refill = Refill(self.refill, self.rows - 1, self.seed)
        self._refill.extend(context)
        self._last = int(context[-1])
        self._window: list[int | None] = [None] * (self.rows - 1)
        self.signal = 1

    def propose(self, budget: int) -> Tree:
        guesses = self._window[: min(budget, self.rows) - 1]
        return Tree.chain(self._refill.fill(self._last, guesses))

    def observe(self, tree: Tree, verdict: Verdict, scores: Scores, row: int) -> None:
        accepted = len(verdict.path) - 1
        best: list[int] = scores.argmax[row, : len(tree)].tolist()
        guesses: list[int] = tree.tokens[1:].tolist()
        self._window = advance(self._window, best, accepted, self.rows - 1)
        self.signal = 1 + settled(guesses[accepted + 1 :], best[accepted + 1 :])
        self._refill.extend(verdict.tokens(tree))
        self._last = verdict.next

    def prior(self, signal: int) -> Sequence[float]:
        return self._priors[max(signal - 1, 0)]
