"""A head of several layers, each of which drafts a token: what is drafted is what the layers say of
the whole text, whatever was accepted of the drafts before."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from graftline.errors import GraftlineError
from graftline.runtimes.drafter import Bid
from graftline.runtimes.drafters import make_drafter
from graftline.runtimes.drafting import draft_together
from graftline.runtimes.feature_engine import FeatureEngine
from graftline.runtimes.resources import Resources
from graftline.runtimes.session import FINAL, Floats, Scores, Show, Tap
from graftline.tree import Tree
from tests.eagle_drafts import DraftedSequence
from tests.markov_host import HIDDEN, VOCABULARY

LAYERS = 4
CHUNK = 5
"""Rows of a text that a layer reads at once."""


class ToyLayer:
    """A layer whose state of a slot is a function of all that its cache has up to there."""

    width, candidates, capacity, threads, supports_trees = HIDDEN, 1, 96, 1, False
    state = FINAL
    facts: Any = None

    def __init__(self, number: int) -> None:
        random = np.random.default_rng(number)
        self.table, self.scores = random.standard_normal((2, VOCABULARY, HIDDEN))
        self.cache: list[dict[int, Any]] = []
        self.rows: list[int] = []
        """Of every call."""

    @property
    def lengths(self) -> Any:
        return np.zeros(len(self.cache), np.int64)

    def reset(self, batch: int) -> None:
        self.cache = [{} for _ in range(batch)]

    def seat(self) -> int:
        self.cache.append({})
        return len(self.cache) - 1

    def advance(self, row: int, count: int) -> None:
        """What is in use is not counted."""

    def states(self, slots: Sequence[Any]) -> Floats:
        """[N, H] of the contents of slots [N, H]: each sees those before it, and their places."""
        places = np.arange(1, len(slots) + 1)[:, None]
        summed = np.cumsum(np.stack(slots) * np.sqrt(places), axis=0)
        return np.tanh(summed / places**1.5).astype(np.float32)

    def contents(self, tokens: Sequence[int], features: Floats) -> Any:
        return self.table[list(tokens)] + features

    def follow(
        self, row: int, length: int, tokens: Sequence[int], asked: int = 1,
        features: Floats | None = None, show: Show | None = None,
    ) -> Scores:  # fmt: skip
        assert features is not None
        self.rows.append(len(tokens))
        cache = self.cache[row]
        for slot, x in enumerate(self.contents(tokens, features), length):
            cache[slot] = x
        made = self.states([cache[slot] for slot in range(length + len(tokens))])[length:]
        if show is not None and len(tokens) > 1:
            for start in range(0, len(made), CHUNK):
                show({FINAL: made[start : start + CHUNK]})
        return self._said(made[-1:])

    def follow_rows(
        self, first: int, starts: Sequence[int], tokens: Sequence[int],
        features: Floats | None = None,
    ) -> Scores:  # fmt: skip
        assert features is not None
        each = [
            self.follow(first + n, start, [token], features=features[n : n + 1])
            for n, (start, token) in enumerate(zip(starts, tokens, strict=True))
        ]
        return self._said(np.concatenate([one.tap(FINAL)[0] for one in each])[:, None])

    def _said(self, states: Any) -> Scores:
        states = states.reshape(-1, 1, HIDDEN)
        logits = (states @ self.scores.T).astype(np.float32)
        taps: Mapping[Tap, Any] = {FINAL: states}
        return Scores(logits.argmax(-1), logits, taps=taps)


def opened() -> tuple[Any, list[ToyLayer]]:
    layers = [ToyLayer(number) for number in range(LAYERS)]
    first, *others = layers
    deeper = [FeatureEngine(one, FINAL, 1.0) for one in others]
    own = FeatureEngine(first, FINAL, 1.0, deeper=deeper)
    return SimpleNamespace(resources=Resources(head=lambda: own, vocabulary=VOCABULARY)), layers


def rolled_out(layers: Sequence[ToyLayer], tokens: list[int], features: Floats) -> list[int]:
    """What the layers draft behind a text whose features are given, each over all of it."""
    text, drafts, states = tokens[1:], list[int](), features
    for number, layer in enumerate(layers):
        ids = [*text, *drafts][number : number + len(text)]
        states = layer.states(list(layer.contents(ids, states)))
        drafts.append(int((states[-1] @ layer.scores.T).argmax()))
    return drafts


def test_drafts_are_the_layers_own_whatever_was_accepted() -> None:
    engine, layers = opened()
    random = np.random.default_rng(2)
    ones = [DraftedSequence(engine, random, length) for length in (6, 13)]
    for accepted in (0, 2, 0, 4, 1, 3, 3, 0, 4, 4, 1):
        for one in ones:
            one.choose(range(accepted + 1))
        trees = draft_together([one.drafter.draft(Bid.free(9)) for one in ones])
        for one, tree in zip(ones, trees, strict=True):
            assert isinstance(tree, Tree), tree
            one.tree = tree
            assert tree.token_list[1:] == rolled_out(layers, one.tokens, one.features)


def test_a_draft_that_is_made_again_or_is_shorter() -> None:
    """What was drafted and not verified is not the text's; layers that were not asked catch up."""
    engine, layers = opened()
    one = DraftedSequence(engine, np.random.default_rng(3), 7)
    one.choose([0])
    for rows, accepted in ((2, None), (5, None), (2, 1), (3, 1), (2, 0), (5, 2), (5, 0)):
        (tree,) = draft_together([one.drafter.draft(Bid.free(rows))])
        assert isinstance(tree, Tree), tree
        assert tree.token_list[1:] == rolled_out(layers, one.tokens, one.features)[: rows - 1]
        if accepted is not None:
            one.tree = tree
            one.choose(range(accepted + 1))


def test_nothing_is_read_twice_that_is_still_true() -> None:
    """Behind a step that took `accepted` drafts, layer k reads the tokens that came, and of those
    that it had read ahead only what they made wrong."""
    engine, layers = opened()
    one = DraftedSequence(engine, np.random.default_rng(4), 9)
    one.choose([0])
    for accepted in (0, 2, 4, 1):
        (one.tree,) = draft_together([one.drafter.draft(Bid.free(9))])  # type: ignore[assignment]
        one.choose(range(accepted + 1))
        before = [len(layer.rows) for layer in layers]
        list(draft_together([one.drafter.draft(Bid.free(9))]))
        read = [sum(layer.rows[n:]) for layer, n in zip(layers, before, strict=True)]
        assert read == [max(accepted, number) + 1 for number in range(LAYERS)]
        one.tree = Tree.chain(one.tokens[-1:])


def test_trees_are_refused() -> None:
    engine, _ = opened()
    with pytest.raises(GraftlineError, match="the head of this bundle reads chains only"):
        make_drafter("eagle", {"width": 3}, engine.resources)
