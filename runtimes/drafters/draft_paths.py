"""Several drawn paths of a draft model, for rules that choose among them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from graftline.errors import GraftlineError
from graftline.runtimes.draft_reader import Guess, drawn
from graftline.runtimes.drafter import Bid
from graftline.runtimes.drafters.draft_model import DraftModel
from graftline.runtimes.drafting import Draft
from graftline.tree import Doubles, Draws, Tree


class Trie:
    """Drawn paths joined by their prefixes; what was drawn at each node, in order."""

    def __init__(self, root: int) -> None:
        self.tokens, self.parents = [root], [-1]
        self.probs: dict[int, Doubles] = {}
        self.order: dict[int, list[int]] = {}

    def child(self, node: int, token: int) -> int:
        """The child that carries `token`, made where there is none."""
        known = (n for n, p in enumerate(self.parents) if p == node and self.tokens[n] == token)
        found = next(known, len(self.tokens))
        if found == len(self.tokens):
            self.tokens.append(token)
            self.parents.append(node)
        self.order.setdefault(node, []).append(found)
        return found

    def tree(self, replacement: bool) -> Tree:
        """With `draws` at every node whose children were drawn; only the root's children are ever
        drawn without replacement."""
        draws = {
            node: Draws(self.probs[node], tuple(order), replacement or node > 0)
            for node, order in self.order.items()
            if node in self.probs
        }
        ids = np.asarray(self.tokens, np.int64), np.asarray(self.parents, np.int64)
        return Tree(*ids, draws=draws or None)


@dataclass
class DraftPaths(DraftModel):
    """`paths` continuations of equal length drawn independently (SpecTr, arXiv 2310.15141; GBV), or
    whose first tokens are drawn without replacement (multi-draft speculative decoding, arXiv
    2502.18779). At temperature 0: the draft's best first tokens, each followed by its best ones.

    The size is settled before anything is drawn: nothing drawn is left out.
    """

    branching: ClassVar[bool] = True
    name: ClassVar[str] = "draft-paths"
    sampled: bool = True
    paths: int = 2
    replacement: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 1 <= self.paths < self.rows or self.length:
            raise GraftlineError(
                f"draft-paths: paths={self.paths}, rows={self.rows}, length={self.length!r} do not "
                "fit; use 1 <= paths < rows, and no length policy"
            )

    def draft(self, bid: Bid) -> Draft:
        self.signal, self.reads = self.foresight(), 0
        reader = self._reader
        reader.sit(bid.row)
        rows = min(bid.rows, self.rows) - 1
        paths = min(self.paths, rows)
        deep = min(rows // paths, reader.room) if paths > 0 else 0
        trie = Trie(reader.tokens[-1])
        guesses: dict[int, Guess] = {}
        for _ in range(paths):
            node, ahead = 0, list[int]()
            while len(ahead) < deep:
                if node not in guesses:
                    guesses[node], _ = yield from self._answer(ahead, 1.0, bid)
                token = self._take(trie, node, guesses[node])
                if token is None:
                    break
                node = trie.child(node, token)
                ahead.append(token)
        return trie.tree(self.replacement)

    def _take(self, trie: Trie, node: int, guess: Guess) -> int | None:
        """The next token at `node`; None when nothing is left to draw."""
        taken = [trie.tokens[child] for child in trie.order.get(node, ())]
        if guess.probs is None:
            return self._next_best(guess, taken)
        trie.probs[node] = guess.probs
        left = guess.probs
        if node == 0 and not self.replacement and taken:
            left = left.copy()
            left[taken] = 0.0
            if left.sum() <= 0.0:
                return None
        return drawn(left, self._generator)

    @staticmethod
    def _next_best(guess: Guess, taken: Sequence[int]) -> int | None:
        """At temperature 0 the likeliest token not drafted yet there, of those the graph names."""
        known = [guess.best, *guess.others] if guess.known else []
        return next((token for token in known if token not in taken), None)

    def hope(self, foresight: int) -> Sequence[float]:
        deep = (self.rows - 1) // self.paths
        return tuple(self._agreement ** min(row, deep + 1) for row in range(deep + 1))
