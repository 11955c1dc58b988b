"""A sequence whose target is chance, for drafters that read hidden states of it."""

from __future__ import annotations

from typing import Any

import numpy as np

from graftline.runtimes.drafters import make_drafter
from graftline.runtimes.session import MADE, Scores
from graftline.runtimes.verdict import Verdict
from graftline.tree import Tree


class DraftedSequence:
    """Features and tokens are drawn; the drafter is shown them as an engine shows them."""

    def __init__(
        self, engine: Any, name: str, random: Any, length: int, vocabulary: int, width: int
    ) -> None:
        self.random, self.draft, self._sizes = random, list[int](), (vocabulary, width)
        self.drafter: Any = make_drafter(name, {}, engine.resources)
        self.tokens: list[int] = random.integers(0, vocabulary, length).tolist()
        states = random.standard_normal((length, width)).astype(np.float32)
        self.drafter.see(0, {MADE: states[:4]})
        self.drafter.see(4, {MADE: states[4:]})
        self.drafter.start(self.tokens)
        self.features = states[:-1]
        """Of every token but the last."""
        self._last = states[-1:]

    def choose(self, accepted: int) -> None:
        """The target takes so many of the draft, and then a token of its own."""
        vocabulary, width = self._sizes
        own = int(self.random.integers(0, vocabulary))
        tree = Tree.chain([self.tokens[-1], *self.draft])
        states = self.random.standard_normal((len(tree), width)).astype(np.float32)
        if len(self._last):
            states[0], self._last = self._last[0], self._last[:0]
        scores = Scores(np.zeros((1, len(tree)), np.int64), np.zeros((1, len(tree), 1)),
                        taps={MADE: states[None]})  # fmt: skip
        self.drafter.observe(tree, Verdict(tuple(range(accepted + 1)), own), scores, 0)
        self.tokens += [*self.draft[:accepted], own]
        self.features = np.concatenate([self.features, states[: accepted + 1]])
