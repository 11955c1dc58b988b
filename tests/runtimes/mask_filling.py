"""Toy drafts that fill masks, with caches of their own or the target's."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from toy_drafts import CheckedSession
from toy_session import ToySession

from graftline.recipe import Recipe
from graftline.runtimes.control.costs import Costs
from graftline.runtimes.draft_engine import DraftEngine, OwnCaches
from graftline.runtimes.draft_seats import TargetSeats
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


class Filling(CheckedSession):
    """The session of a draft on caches of its own."""

    def __init__(self, law: Law, **session: Any) -> None:
        self.law = law
        self.sizes: list[tuple[int, int]] = []
        super().__init__(**{"vocabulary": MASK + 1, **session})
        self.facts = replace(self.facts, mask_token=MASK)

    def follow(self, row: int, length: int, tokens: Sequence[int], asked: int = 1) -> Scores:
        self.sizes.append((len(tokens), asked))
        return super().follow(row, length, tokens, asked)

    def follow_rows(self, first: int, starts: Sequence[int], tokens: Sequence[int]) -> Scores:
        self.sizes += [(1, 1)] * len(starts)
        return super().follow_rows(first, starts, tokens)

    def logits_of(self, seen: Ints) -> Floats:
        return self.law(seen)


class OwnDraft(OwnCaches):
    """A draft on its own toy session."""

    session: Filling

    def __init__(self, law: Law, step: float = 5.0, **session: Any) -> None:
        super().__init__(Filling(law, **session), step, 0.9)

    @property
    def sizes(self) -> list[tuple[int, int]]:
        """Rows, and those whose scores were asked for, of every call."""
        return self.session.sizes

    @property
    def text(self) -> list[int]:
        """What lies in the cache of the first sequence, as far as it was written last."""
        return self.session.texts[0]


class Borrowing(Filling):
    """On the target's slots."""

    def __init__(self, law: Law, target: ToySession) -> None:
        self.target = target
        super().__init__(law)

    def _put(self, row: int, slot: int, token: int) -> Floats:
        assert slot >= self.target.lengths[row], "a committed slot"
        return ToySession._put(self, row, slot, token)

    def _caches(self, row: int) -> Ints:
        return self.target._slots[row]


class SharedDraft(DraftEngine):
    """A draft on the target's slots, whatever sequence of the batch."""

    session: Borrowing

    def __init__(self, target: ToySession, law: Law, step: float = 5.0) -> None:
        super().__init__(Borrowing(law, target), TargetSeats(target), step, 0.9)

    @property
    def sizes(self) -> list[tuple[int, int]]:
        return self.session.sizes


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
        if not drafts:
            drafts.append(make(target))
        return drafts[0]

    resources = Resources(draft=opened, vocabulary=target.facts.vocabulary)
    return Engine(target, None, {"eos_token_id": 0}, chosen, costs, resources=resources), drafts


def policy(rule: str = "point-mass", drafter: str = "parallel-draft", **options: object) -> Recipe:
    return Recipe(f"{rule}{drafter}{options}", "", "", True, (), "", drafter, rule, options)


def drafter_of(engine: Any, **options: object) -> Any:
    return make_drafter("parallel-draft", options, Resources(draft=lambda: engine, vocabulary=40))
