"""One sequence of a batch: what was asked, what has been chosen, and how it went."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Literal

from graftline.runtimes.drafter import Bid, Drafter, is_paid
from graftline.runtimes.session import Ints, Scores
from graftline.runtimes.trees.packing import first_path, trim
from graftline.runtimes.trees.soundness import sound
from graftline.runtimes.verdict import Rule, Verdict
from graftline.tree import Tree

FinishReason = Literal["eos", "stop", "length"]


@dataclass
class Decoding:
    """The root of every tree is the last chosen token: it is not in the cache yet, so a sequence
    with t chosen tokens has `len(prompt) + t - 1` committed positions."""

    prompt: Ints
    limit: int
    """Most tokens to choose, at least 1."""
    ends: frozenset[int]
    """Ids that end the sequence."""
    drafter: Drafter
    rule: Rule
    watch: Callable[[Tree, Verdict, Scores, int, set[int]], None] | None = None
    """Is shown every judged tree, its verdict and scores, and the tokens before the step."""
    vocabulary: int = 0
    """Ids the target knows, as its first scores show."""
    seat: int = 0
    """Its row in the session's batch."""
    tokens: list[int] = field(default_factory=list[int])
    finish: FinishReason | None = None
    retired: bool = False
    """True once finished and rolled back to one position, to make room for the others."""
    steps: int = 0
    drafted: int = 0
    offered: list[int] = field(default_factory=list[int])
    """For depth 1, 2, ...: steps whose tree was that deep."""
    accepted: list[int] = field(default_factory=list[int])
    """For depth 1, 2, ...: steps that accepted a token there."""
    started: float = 0.0
    first: float = 0.0
    ended: float = 0.0
    """Times by time.perf_counter: start of the request, first token, last token."""

    @property
    def length(self) -> int:
        """Committed positions."""
        return 1 if self.retired else len(self.prompt) + len(self.tokens) - 1

    def begin(self, scores: Scores, row: int) -> list[int]:
        """Choose the first token from the prompt's last row."""
        self.vocabulary = scores.logits.shape[-1]
        context: list[int] = self.prompt.tolist()
        self.rule.start(context)
        self.drafter.start(context)
        root = Tree.chain((context[-1],))
        verdict = self.rule.judge(root, scores, row)
        self.drafter.observe(root, verdict, scores, row)
        fresh = self._take(verdict.tokens(root))
        self.first = time.perf_counter()
        return fresh

    def root(self) -> tuple[int, Tree]:
        """What is proposed when nothing is drafted."""
        return 0, Tree.chain((self.tokens[-1],))

    def propose(self, branches: bool, bid: Bid | None = None) -> tuple[int, Tree]:
        """The drafter's signal and its tree, none of it deeper than chains can still be used; a
        chain unless `branches`; the root alone where no draft could help.

        With a `bid`, a drafter that has one spends on a draft; without, what costs nothing.
        """
        remaining = self.limit - len(self.tokens)
        drafter = self.drafter
        if self.finish is not None or remaining < 2 or drafter.rows < 2:
            return self.root()
        budget = drafter.rows if bid is None else min(drafter.rows, bid.rows)
        if not drafter.branching:
            budget = min(budget, remaining)
        if bid is not None and is_paid(drafter):
            proposed = drafter.draft(replace(bid, rows=budget, row=self.seat))
        else:
            proposed = drafter.propose(budget)
        tree = sound(proposed, self.tokens[-1], self.vocabulary, budget, whole=bid is not None)
        if not branches:
            tree = first_path(tree)
        if len(tree) > remaining and tree.is_chain and bid is None:
            tree = trim(tree, remaining)  # what lies behind the limit is never read
        return drafter.signal, tree

    def judge(self, tree: Tree, scores: Scores, row: int) -> tuple[tuple[int, ...], list[int]]:
        """The path to commit and the tokens chosen; nothing for a finished sequence."""
        if self.finish is not None:
            return (), []
        verdict = self.rule.judge(tree, scores, row)
        self.drafter.observe(tree, verdict, scores, row)
        if self.watch is not None:
            self.watch(tree, verdict, scores, row, {*self.prompt.tolist(), *self.tokens})
        fresh = self.take(verdict.tokens(tree), tree)
        return verdict.path[: len(fresh)], fresh

    def take(self, chosen: list[int], shape: Tree) -> list[int]:
        """What counts of the tokens that a step on a tree of that shape chose."""
        fresh = self._take(chosen)
        self.steps += 1
        if len(shape) > 1:
            self._count(shape, len(fresh) - 1)
        return fresh

    def _take(self, chosen: list[int]) -> list[int]:
        """Append the tokens up to the first end or the limit."""
        fresh = chosen[: self.limit - len(self.tokens)]
        if self.ends:
            for place, token in enumerate(fresh):
                if token in self.ends:
                    fresh = fresh[: place + 1]
                    self.finish = "eos"
                    break
        self.tokens += fresh
        if self.finish is None and len(self.tokens) == self.limit:
            self.finish = "length"
        if self.finish is not None:
            self.ended = time.perf_counter()
        return fresh

    def _count(self, tree: Tree, accepted: int) -> None:
        deepest = int(tree.depth.max()) if not tree.is_chain else len(tree) - 1
        self.drafted += len(tree) - 1
        while len(self.offered) < deepest:
            self.offered.append(0)
            self.accepted.append(0)
        for depth in range(deepest):
            self.offered[depth] += 1
            self.accepted[depth] += depth < accepted
