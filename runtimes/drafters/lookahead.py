"""Lookahead decoding: n-grams from a Jacobi window, kept in a pool, offered as drafts."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np

from graftline.errors import GraftlineError
from graftline.runtimes.drafter import match_prior
from graftline.runtimes.session import Scores
from graftline.runtimes.verdict import Verdict
from graftline.tree import Tree

_PATIENCE = 24
"""Scored windows without an accepted token of theirs, after which the window pauses."""
_SHORTEST_PAUSE, _LONGEST_PAUSE = 8, 256
_FIRST_WORTH = {False: 0.05, True: 0.02}
"""What a row of a window is first believed to be worth, without and with n-grams beside it. What
it is good for comes later, so this is the price at which a new text tries the window."""


class NgramPool:
    """For every token the n-grams that started with it lately: the `most` newest, and whether the
    window gave them."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._after: dict[int, dict[tuple[int, ...], bool]] = {}

    def add(self, ngram: tuple[int, ...], from_window: bool) -> None:
        """Keep `ngram` as the newest of its first token; who gave it first is remembered."""
        known = self._after.setdefault(ngram[0], {})
        known[ngram[1:]] = known.pop(ngram[1:], from_window)
        if len(known) > self._most:
            del known[next(iter(known))]

    def after(self, token: int) -> list[tuple[tuple[int, ...], bool]]:
        """What followed `token`, newest first."""
        return list(reversed(self._after.get(token, {}).items()))


class JacobiWindow:
    """Guesses of the tokens to come: `levels[j][i]` is the one at distance i + j from the root.

    Level 0 starts at the root. A guess sees its column's guesses on lower levels and level 0 up to
    its column: column i of level j is a child of column i of level j - 1, and column i of level 0 a
    child of its left neighbour, so the paper's mask is a tree's. Once there are N - 1 levels,
    what the target says below the last one completes an N-gram per column, and the oldest level is
    dropped; the window moves on by one token per pass, whatever was accepted.
    """

    def __init__(self, width: int, size: int, source: Sequence[int]) -> None:
        draw = random.Random(0)  # guesses cost nothing but speed, and runs repeat
        self._size = size
        self.levels = [[draw.choice(source) for _ in range(width)]]

    def grow(self, shoot: Shoot) -> list[int]:
        """Add the window's rows below the root; the rows of the last level."""
        rows = [0]
        for token in self.levels[0][1:]:
            rows.append(shoot.add(rows[-1], token))
        for level in self.levels[1:]:
            rows = [shoot.add(row, token) for row, token in zip(rows, level, strict=True)]
        return rows

    def advance(self, root: int, answers: list[int]) -> list[tuple[int, ...]]:
        """Take the target's choices after the rows of the last level; the N-grams they complete."""
        self.levels[0][0] = root
        self.levels.append(answers)
        if len(self.levels) < self._size:
            return []
        ngrams = list(zip(*self.levels, strict=True))
        self.levels.pop(0)
        return ngrams


class Shoot:
    """A tree under construction whose siblings carry different tokens: equal paths are one."""

    def __init__(self, root: int) -> None:
        self.tokens, self.parents = [root], [-1]
        self._place: dict[tuple[int, int], int] = {}

    def add(self, parent: int, token: int) -> int:
        """The row of `token` below `parent`, new or not."""
        row = self._place.setdefault((parent, token), len(self.tokens))
        if row == len(self.tokens):
            self.tokens.append(token)
            self.parents.append(parent)
        return row

    def starts_with(self, tree: Tree) -> bool:
        """True when `tree` is the first rows of this one."""
        count = len(tree)
        tokens, parents = self.tokens[:count], self.parents[:count]
        return tree.token_list == tokens and tree.parent_list == parents


@dataclass
class Lookahead:
    """Lookahead decoding (arXiv 2402.02057): a window of W columns and N - 1 levels and up to G
    n-grams that start with the last token, scored in one pass.

    The window's rows are an investment: hardly ever accepted themselves, they give the n-grams of
    later steps. They come first, so that whoever cuts the proposal takes or leaves the window and
    what it paid for as one. A window that was cut, or gave no accepted token in 24 passes, pauses,
    twice as long each time; meanwhile the pool alone drafts, which also learns from the text. The
    signal tells whether the window is offered, whether n-grams are, and whether the last were
    accepted.
    """

    branching: ClassVar[bool] = True
    rows: int = 32
    window: int = 5
    """Columns of the window (W)."""
    size: int = 4
    """Length of the n-grams (N)."""
    candidates: int = 5
    """Most n-grams offered, and kept per token (G)."""
    text: bool = True
    """Keep the n-grams of prompt and output too, not only the window's."""
    shared: bool = False
    """Keep the pool between requests and share it in a batch."""
    signal: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        if self.window < 1 or self.size < 2 or self.candidates < 1:
            raise GraftlineError(
                f"lookahead: window={self.window}, size={self.size}, candidates={self.candidates} "
                "are not valid; use window >= 1, size >= 2 and candidates >= 1"
            )
        least = self.window * (self.size - 1) + 1
        if self.rows < least:
            raise GraftlineError(
                f"lookahead: rows={self.rows} have no room for the window and a draft; "
                f"use rows >= {least}, or a smaller window or size"
            )
        self._pool = NgramPool(self.candidates)
        self._priors = [self._first_belief(signal) for signal in range(8)]
        self.start((0,))

    def fork(self) -> Lookahead:
        other = Lookahead(
            self.rows, self.window, self.size, self.candidates, self.text, self.shared
        )
        if self.shared:
            other._pool = self._pool
        return other

    def start(self, context: Sequence[int]) -> None:
        if not self.shared:
            self._pool = NgramPool(self.candidates)
        source = [int(token) for token in context]
        self._last, self._recent = source[-1], list[int]()
        self._window = JacobiWindow(self.window, self.size, source)
        self._shoot, self._frontier, self._born = Shoot(self._last), list[int](), set[int]()
        self._fruitless, self._wait, self._pause = 0, 0, _SHORTEST_PAUSE
        self._accepted = False
        for token in source:
            self._read(token)

    def propose(self, budget: int) -> Tree:
        shoot = self._shoot = Shoot(self._last)
        self._frontier = [] if self._wait else self._window.grow(shoot)
        self._born = set()
        ngrams = self._pool.after(self._last)
        for rest, from_window in ngrams:
            row = 0
            for token in rest:
                row = shoot.add(row, token)
                if from_window:
                    self._born.add(row)
        self.signal = 0
        if self._frontier or ngrams:
            self.signal = bool(self._frontier) + 2 * bool(ngrams) + 4 * self._accepted
        rows = min(budget, self.rows)
        tokens, parents = shoot.tokens[:rows], shoot.parents[:rows]
        return Tree(np.asarray(tokens, np.int64), np.asarray(parents, np.int64))

    def observe(self, tree: Tree, verdict: Verdict, scores: Scores, row: int) -> None:
        own = self._shoot.starts_with(tree)
        scored = own and max(self._frontier, default=0) < len(tree)
        self._account(own and not self._born.isdisjoint(verdict.path), scored)
        if self._frontier and scored:
            answers: list[int] = scores.argmax[row, self._frontier].tolist()
            for ngram in self._window.advance(self._last, answers):
                self._pool.add(ngram, from_window=True)
        self._frontier = []
        self._accepted = len(verdict.path) > 1
        for token in verdict.tokens(tree):
            self._read(token)
        self._last = verdict.next

    def prior(self, signal: int) -> Sequence[float]:
        return self._priors[signal]

    def _account(self, fruitful: bool, scored: bool) -> None:
        """Decide whether the window goes on being offered: did an n-gram of its stand, and was it
        scored?"""
        if fruitful:
            self._fruitless, self._pause = 0, _SHORTEST_PAUSE
        if not self._frontier:
            self._wait = max(self._wait - 1, 0)
            return
        self._fruitless += 1
        if not scored or self._fruitless >= _PATIENCE:
            self._wait, self._pause = self._pause, min(2 * self._pause, _LONGEST_PAUSE)
            self._fruitless = 0

    def _read(self, token: int) -> None:
        """Keep the n-gram of the text that `token` completes."""
        self._recent = [*self._recent, token][-self.size :]
        if self.text and len(self._recent) == self.size:
            self._pool.add(tuple(self._recent), from_window=False)

    def _first_belief(self, signal: int) -> Sequence[float]:
        windowed, ngrams, accepted = signal & 1, bool(signal & 2), signal & 4
        if not windowed:
            return match_prior((2 if accepted else 1) if ngrams else 0, self.rows)
        chance = _FIRST_WORTH[ngrams] * (2 if accepted else 1)
        return (1.0, *[chance] * (self.rows - 1))
