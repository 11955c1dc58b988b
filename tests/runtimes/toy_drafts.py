"""Draft models on toy sessions, and engines that draft with them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from toy_session import ToySession

from graftline.recipe import Recipe
from graftline.runtimes.control.costs import Costs
from graftline.runtimes.draft_engine import DraftEngine, OwnCaches
from graftline.runtimes.draft_seats import TargetSeats
from graftline.runtimes.drafter import Bid
from graftline.runtimes.drafting import draft_alone
from graftline.runtimes.engine import Engine
from graftline.runtimes.resources import Resources
from graftline.runtimes.session import Floats, Ints, Scores

COSTS = Costs({1: 20.0, 2: 22.0, 4: 24.0, 8: 30.0, 16: 45.0, 32: 80.0}, {})
"""About fp32 on two cores; a draft call of 5 ms is an int4 draft's."""


class CheckedSession(ToySession):
    """Proves, at every call, that what a sequence sees of its cache was written for it."""

    def __init__(self, **session: Any) -> None:
        self.texts: list[list[int]] = []
        super().__init__(**session)

    def reset(self, batch: int) -> None:
        super().reset(batch)
        self.texts = [[] for _ in range(batch)]

    def seat(self) -> int:
        for row, length in enumerate(self._lengths):  # memory moves: what is counted goes along
            self.texts[row] = self.texts[row][:length]
            self._slots[row, length:] = -7
        self.texts.append([])
        return super().seat()

    def leave(self, row: int) -> None:
        last = self.texts.pop()[: self._lengths[-1]]
        if row < len(self.texts):
            self.texts[row] = last
        super().leave(row)
        self._slots[row : row + 1, len(last) :] = -7

    def _put(self, row: int, slot: int, token: int) -> Floats:
        assert slot <= len(self.texts[row]), "behind slots that were never written"
        self.texts[row] = [*self.texts[row][:slot], token]
        found = super()._put(row, slot, token)
        expected = list(enumerate(self.texts[row]))
        assert [tuple(pair) for pair in self._slots[row, : slot + 1].tolist()] == expected
        return found


class CheckedDraft(OwnCaches):
    """A draft on its own toy session."""

    session: CheckedSession

    def __init__(self, step: float = 5.0, odd: int = 4, **session: Any) -> None:
        own = CheckedSession(odd=odd, **session)
        super().__init__(own, step, own=lambda: CheckedDraft(step, odd, **session))

    @property
    def calls(self) -> list[int]:
        """Rows of each call."""
        return [sum(rows.values()) for rows in self.session.followed]

    @property
    def sequence(self) -> list[int]:
        """What lies in the cache of the first sequence."""
        return self.session.texts[0]


class Guest(ToySession):
    """Other weights on a target's own slots, for all sequences of the batch."""

    def __init__(self, target: ToySession, odd: int = 4, **session: Any) -> None:
        self.target = target
        super().__init__(odd=odd, **session)

    def _put(self, row: int, slot: int, token: int) -> Floats:
        assert slot >= self.target.lengths[row], "a committed slot"
        return super()._put(row, slot, token)

    def _caches(self, row: int) -> Ints:
        return self.target._slots[row]

    def _answered(self, logits: Floats, rows: int) -> Scores:
        """Without candidates: not every graph reduces its logits."""
        scores = super()._answered(logits, rows)
        self._answer = Scores(scores.argmax, scores.logits)
        return self._answer


class SharedDraft(DraftEngine):
    """A draft with other weights on the target's own slots."""

    session: Guest

    def __init__(self, target: ToySession, step: float = 5.0, guest: Guest | None = None) -> None:
        session = guest or Guest(target)
        super().__init__(session, TargetSeats(target), step, 0.75, own=lambda: CheckedDraft(step))
        self.target, self.model = target, session


class Garbage(ToySession):
    """Agrees with nobody."""

    def logits_of(self, seen: Ints) -> Floats:
        return np.random.default_rng(len(seen)).normal(size=self.facts.vocabulary).astype("f4")


def engine_of(
    drafts: list[Any], make: Callable[[ToySession], Any], chosen: Recipe, costs: Costs | None
) -> Engine:
    session = ToySession()

    def opened() -> Any:
        if not drafts:
            drafts.append(make(session))
        return drafts[0]

    resources = Resources(draft=opened, vocabulary=40)
    return Engine(session, None, {"eos_token_id": 0}, chosen, costs, resources=resources)


def begin(drafter: Any, target: ToySession, context: list[int]) -> None:
    """The target has committed all but the last token."""
    target.reset(1)
    target.prefill([np.asarray(context[:-1])])
    drafter.start(context)


def draft_of(drafter: Any, bid: Bid) -> Any:
    """The draft of one sequence."""
    return draft_alone(drafter.draft(bid))


def policy(drafter: str = "draft-model", rule: str = "point-mass", **options: object) -> Recipe:
    name = f"{drafter}{rule}{options}"
    return Recipe(name, "", "", True, ("draft",), "", drafter, rule, options)
