"""Toy drafts that fill masks, with caches of their own or the target's."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from toy_session import ToySession

from graftline.recipe import Recipe
from graftline.runtimes.control.costs import Costs
from graftline.runtimes.draft_engine import OwnCaches, usual_cost
from graftline.runtimes.drafters import make_drafter
from graftline.runtimes.engine import Engine
from graftline.runtimes.resources import Resources
from graftline.runtimes.session import Floats, Ints, Scores

COSTS = Costs({1: 20.0, 2: 22.0, 4: 24.0, 8: 30.0, 16: 45.0, 32: 80.0}, {})
"""About fp32 on two cores."""


MASK = 40
"""The draft knows one id more than the target."""


Law = Callable[[Ints], Floats]
"""What a draft's row says of the (position, token) pairs that it sees."""


def trained(like: ToySession, skill: int = 9) -> Law:
    """A model trained to fill masks: the i-th says what `like` would write i tokens on, in `skill`
    of ten contexts, and something else in the others."""

    def law(seen: Ints) -> Floats:
        tokens = seen[:, 1].tolist()
        masks = next((n for n in range(len(tokens)) if tokens[-1 - n] != MASK), len(tokens))
        text = tokens[: len(tokens) - masks]
        assert MASK not in text, "a mask was left among the text"
        for _ in range(masks):
            text.append(int(like.logits_of(pairs(text)).argmax()))
        logits = like.logits_of(pairs(text))
        wrong = sum(text[-3:]) % 10 >= skill
        return np.append(np.roll(logits, 5) if wrong else logits, np.float32(-9))

    return law


def untrained(like: ToySession) -> Law:
    """Takes a mask for any other token: only the first row is good."""
    good = trained(like)

    def law(seen: Ints) -> Floats:
        if seen[-1, 1] != MASK:
            return good(seen)
        return np.random.default_rng(len(seen)).normal(size=MASK + 1).astype("f4")

    return law


def pairs(tokens: Sequence[int]) -> Ints:
    return np.stack([np.arange(len(tokens)), np.asarray(tokens)], axis=1)


class Filling(ToySession):
    """The session of a draft on caches of its own."""

    def __init__(self, law: Law, **session: Any) -> None:
        self.law = law
        super().__init__(**{"vocabulary": MASK + 1, **session})
        self.facts = replace(self.facts, mask_token=MASK)

    def logits_of(self, seen: Ints) -> Floats:
        return self.law(seen)


class OwnDraft(OwnCaches):
    """Proves, at every call, what lies in its cache behind the text."""

    def __init__(self, law: Law, step: float = 5.0, **session: Any) -> None:
        super().__init__(Filling(law, **session), step, 0.9)
        self.sizes: list[tuple[int, int]] = []
        """Rows, and those whose scores were asked for, of every call."""
        self.text: list[int] = []

    def follow(self, row: int, length: int, tokens: Sequence[int], asked: int = 1) -> Scores:
        self.sizes.append((len(tokens), asked))
        self.text = [*self.text[:length], *tokens]
        scores = super().follow(row, length, tokens, asked)
        slots = self.session._slots[0, : len(self.text)]  # type: ignore[attr-defined]
        assert slots.tolist() == pairs(self.text).tolist()
        assert scores.logits.shape[:2] == (1, asked)
        return scores


class SharedDraft:
    """A draft on the target's slots, whatever sequence of the batch."""

    shares = True
    rows_cost = staticmethod(usual_cost)

    def __init__(self, target: ToySession, law: Law, step: float = 5.0) -> None:
        self.target, self.law, self.step, self.capacity = target, law, step, target.capacity
        self.agreement = 0.9
        self.facts = replace(target.facts, vocabulary=MASK + 1, mask_token=MASK)
        self.sizes: list[tuple[int, int]] = []

    def follow(self, row: int, length: int, tokens: Sequence[int], asked: int = 1) -> Scores:
        self.sizes.append((len(tokens), asked))
        assert length >= self.target.lengths[row], "a committed slot"
        behind = length + np.arange(len(tokens))
        assert behind[-1] < self.capacity
        slots = self.target._slots[row]
        slots[behind] = np.stack([behind, np.asarray(tokens)], axis=1)
        ends = length + len(tokens) - np.arange(asked)[::-1]
        logits = np.stack([self.law(slots[:end]) for end in ends])[None]
        return Scores(logits.argmax(-1), logits)


Make = Callable[[ToySession], Any]


TRAINED: dict[str, Make] = {
    "own": lambda target: OwnDraft(trained(target)),
    "shared": lambda target: SharedDraft(target, trained(target)),
}


def engine_of(
    make: Make, chosen: Recipe, costs: Costs | None, **session: Any
) -> tuple[Engine, list[Any]]:
    """An engine, and the drafts that it will have opened."""
    target, drafts = ToySession(**session), list[Any]()

    def opened() -> Any:
        drafts.append(make(target))
        return drafts[-1]

    resources = Resources(draft=opened, vocabulary=target.facts.vocabulary)
    return Engine(target, None, {"eos_token_id": 0}, chosen, costs, resources=resources), drafts


def policy(rule: str = "point-mass", drafter: str = "parallel-draft", **options: object) -> Recipe:
    return Recipe(f"{rule}{drafter}{options}", "", "", True, (), "", drafter, rule, options)


def drafter_of(engine: Any, **options: object) -> Any:
    return make_drafter("parallel-draft", options, Resources(draft=lambda: engine, vocabulary=40))
