"""Sub-models of a toy draft, over caches that prove what they hold."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import numpy as np
from toy_session import ToySession

from graftline.recipe import Recipe
from graftline.runtimes.control.costs import Costs
from graftline.runtimes.draft_engine import DraftEngine
from graftline.runtimes.draft_seats import OwnSeats, TargetSeats
from graftline.runtimes.drafters import make_drafter
from graftline.runtimes.engine import Engine
from graftline.runtimes.resources import Resources
from graftline.runtimes.session import Floats, Ints, Scores

COSTS = Costs({1: 20.0, 2: 22.0, 4: 24.0, 8: 30.0, 16: 45.0, 32: 80.0}, {})
"""About fp32 on two cores."""


STEPS = (1.5, 3.0, 5.0)
"""Milliseconds of a row of each of three sub-models, of 2, 4 and 6 blocks."""


class Blocks:
    """The tokens in the cache of every block of a draft, per sequence.

    With a `target` they lie behind what it has committed, which is in all blocks. Whoever reads a
    slot that was never filled, or that another text has filled, is caught.
    """

    facts = ToySession().facts
    capacity = 512

    def __init__(self, target: ToySession | None) -> None:
        self.target = target
        self.rows: dict[tuple[int, int], list[int]] = {}
        self.reset(0)
        self.seats = OwnSeats(self) if target is None else TargetSeats(target)

    def write(self, row: int, block: int, start: int, tokens: Sequence[int]) -> None:
        held = self.rows.get((row, block), [])
        if self.target is not None:
            length = int(self.target.lengths[row])
            assert start >= length, "a committed slot"
            committed = self.target._slots[row, :length, 1].tolist()
            held = committed + held[length:]
        unknown = [-1] * (start - len(held))
        self.rows[row, block] = [*held[:start], *unknown, *tokens]

    def read(self, row: int, blocks: int) -> list[int]:
        texts = [self.rows[row, block] for block in range(blocks)]
        assert all(-1 not in text for text in texts), "slots were never filled"
        assert all(text == texts[0] for text in texts), "blocks hold different texts"
        return texts[0]

    @property
    def lengths(self) -> Ints:
        return np.asarray(self._lengths, np.int64)

    def reset(self, batch: int) -> None:
        self._lengths = [0] * batch

    def seat(self) -> int:
        self._lengths.append(0)
        return len(self._lengths) - 1

    def leave(self, row: int) -> None:
        last, length = len(self._lengths) - 1, self._lengths.pop()
        for place, block in list(self.rows):
            if place == last:
                self.rows[row, block] = self.rows.pop((last, block))[:length]
        if row != last:
            self._lengths[row] = length

    def advance(self, row: int, count: int) -> None:
        self._lengths[row] += count

    def follow(self, *_: object) -> Scores:
        raise AssertionError("nobody calls the caches")

    follow_rows = follow


class Mind:
    """The session of a sub-model: the target's mind in `skill` of ten contexts, and unsure in the
    others."""

    facts = ToySession().facts
    capacity = 512

    def __init__(
        self, blocks: Blocks, depth: int, skill: int, model: ToySession, heat: float = 1.0
    ) -> None:
        self.blocks, self.depth, self.skill, self.model, self.heat = (
            blocks, depth, skill, model, heat
        )  # fmt: skip
        self.calls: list[dict[int, int]] = []
        """Of every call, the tokens by row."""

    def follow(self, row: int, length: int, tokens: Sequence[int], asked: int = 1) -> Scores:
        assert asked == 1
        self.calls.append({row: len(tokens)})
        for block in range(self.depth):
            self.blocks.write(row, block, length, tokens)
        return self._scores([self._of(self.blocks.read(row, self.depth))])

    def follow_rows(self, first: int, starts: Sequence[int], tokens: Sequence[int]) -> Scores:
        """What a row says whose blocks do not hold its text is nonsense."""
        self.calls.append({first + place: 1 for place in range(len(starts))})
        said: list[Floats] = []
        for place, (start, token) in enumerate(zip(starts, tokens, strict=True)):
            for block in range(self.depth):
                self.blocks.write(first + place, block, start, [token])
            try:
                said.append(self._of(self.blocks.read(first + place, self.depth)))
            except AssertionError:
                said.append(np.full(self.facts.vocabulary, np.nan, np.float32))
        return self._scores(said)

    def _of(self, text: list[int]) -> Floats:
        seen = np.stack([np.arange(len(text)), np.asarray(text)], axis=1)
        logits = self.model.logits_of(seen) * self.heat
        mood = zlib.crc32(np.ascontiguousarray(seen[-3:]).tobytes())
        if mood % 10 >= self.skill:
            logits = np.roll(logits, 1 + mood % 7) * 0.2
        return logits

    @staticmethod
    def _scores(rows: list[Floats]) -> Scores:
        logits = np.stack(rows)[:, None]
        best = np.where(np.isnan(logits).any(-1), 10**9, logits.argmax(-1))
        return Scores(best, logits)


class SubModel(DraftEngine):
    """One of a draft's sub-models."""

    session: Mind

    def __init__(self, mind: Mind, step: float) -> None:
        agreement = max(0.05, min(mind.skill / 10, 0.98))
        super().__init__(mind, mind.blocks.seats, step, agreement)

    @property
    def calls(self) -> list[int]:
        """Rows of each call."""
        return [sum(rows.values()) for rows in self.session.calls]


def nest(
    target: ToySession | None,
    skills: Sequence[int] = (5, 7, 9),
    steps: Sequence[float] = STEPS,
    **model: Any,
) -> list[SubModel]:
    blocks = Blocks(target)
    like = ToySession(**model)
    return [
        SubModel(Mind(blocks, 2 * place + 2, skill, like), step)
        for place, (skill, step) in enumerate(zip(skills, steps, strict=True))
    ]


def policy(rule: str = "point-mass", **options: object) -> Recipe:
    needs = ("draft", "depths")
    return Recipe(f"{rule}{options}", "", "", True, needs, "", "sorted-draft", rule, options)


Make = Callable[[ToySession], Sequence[SubModel]]


def engine_of(make: Make, chosen: Recipe, costs: Costs | None, **session: Any) -> Engine:
    target = ToySession(**session)

    depths = cache(lambda: make(target))

    vocabulary = target.facts.vocabulary
    resources = Resources(draft=lambda: depths()[-1], depths=depths, vocabulary=vocabulary)
    return Engine(target, None, {"eos_token_id": 0}, chosen, costs, resources=resources)


def drafter_of(engines: Sequence[SubModel], **options: object) -> Any:
    resources = Resources(draft=lambda: engines[-1], depths=lambda: engines, vocabulary=40)
    return make_drafter("sorted-draft", options, resources)


OWN: Make = lambda _: nest(None)  # noqa: E731


MAKE: dict[str, Make] = {"own": OWN, "shared": nest}


def calls(engines: Sequence[SubModel]) -> list[int]:
    return [len(e.calls) for e in engines]
