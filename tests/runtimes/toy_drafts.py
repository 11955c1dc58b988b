"""Draft models on toy sessions, and engines that draft with them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from toy_session import ToySession

from graftline.recipe import Recipe
from graftline.runtimes.control.costs import Costs
from graftline.runtimes.draft_engine import OwnCaches, usual_cost
from graftline.runtimes.engine import Engine
from graftline.runtimes.resources import Resources
from graftline.runtimes.session import Floats, Ints, Scores

COSTS = Costs({1: 20.0, 2: 22.0, 4: 24.0, 8: 30.0, 16: 45.0, 32: 80.0}, {})
"""About fp32 on two cores; a draft call of 5 ms is an int4 draft's."""


class CheckedDraft(OwnCaches):
    """A draft on its own toy session that proves, at every call, what lies in its cache."""

    def __init__(self, step: float = 5.0, odd: int = 4, **session: Any) -> None:
        super().__init__(ToySession(odd=odd, **session), step)
        self.calls: list[int] = []
        self.sequence: list[int] = []

    def follow(self, row: int, length: int, tokens: Sequence[int], asked: int = 1) -> Scores:
        self.sequence = [*self.sequence[:length], *tokens]
        self.calls.append(len(tokens))
        scores = super().follow(row, length, tokens, asked)
        slots = self.session._slots[0, : len(self.sequence)]  # type: ignore[attr-defined]
        assert slots[:, 1].tolist() == self.sequence
        assert slots[:, 0].tolist() == list(range(len(self.sequence)))
        assert scores.logits.shape[:2] == (1, asked)
        return scores


class SharedDraft:
    """A draft with other weights on the target's own slots, whatever sequence of the batch."""

    shares = True
    rows_cost = staticmethod(usual_cost)

    def __init__(self, target: ToySession, step: float = 5.0, odd: int = 4) -> None:
        self.target, self.step, self.capacity = target, step, target.capacity
        self.agreement = 0.75
        self.model = ToySession(odd=odd)

    def alone(self) -> CheckedDraft:
        return CheckedDraft(self.step)

    def follow(self, row: int, length: int, tokens: Sequence[int], asked: int = 1) -> Scores:
        target, ids = self.target, np.asarray(tokens)
        behind = length + np.arange(len(tokens))
        assert length >= target.lengths[row]
        slots = target._slots[row]
        slots[behind] = np.stack([behind, ids], axis=1)
        ends = length + len(tokens) - np.arange(asked)[::-1]
        logits = np.stack([self.model.logits_of(slots[:end]) for end in ends])[None]
        return Scores(logits.argmax(-1), logits)


class Garbage(ToySession):
    """Agrees with nobody."""

    def logits_of(self, seen: Ints) -> Floats:
        return np.random.default_rng(len(seen)).normal(size=self.facts.vocabulary).astype("f4")


def engine_of(
    drafts: list[Any], make: Callable[[ToySession], Any], chosen: Recipe, costs: Costs | None
) -> Engine:
    session = ToySession()

    def opened() -> Any:
        drafts.append(make(session))
        return drafts[-1]

    resources = Resources(draft=opened, vocabulary=40)
    return Engine(session, None, {"eos_token_id": 0}, chosen, costs, resources=resources)


def begin(drafter: Any, target: ToySession, context: list[int]) -> None:
    """The target has committed all but the last token."""
    target.reset(1)
    target.prefill([np.asarray(context[:-1])])
    drafter.start(context)


def policy(drafter: str = "draft-model", rule: str = "point-mass", **options: object) -> Recipe:
    name = f"{drafter}{rule}{options}"
    return Recipe(name, "", "", True, ("draft",), "", drafter, rule, options)
