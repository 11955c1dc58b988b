"""Sub-models of a toy draft, over caches that prove what they hold."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from toy_session import ToySession

from graftline.recipe import Recipe
from graftline.runtimes.control.costs import Costs
from graftline.runtimes.draft_engine import usual_cost
from graftline.runtimes.drafters import make_drafter
from graftline.runtimes.engine import Engine
from graftline.runtimes.resources import Resources
from graftline.runtimes.session import Scores

COSTS = Costs({1: 20.0, 2: 22.0, 4: 24.0, 8: 30.0, 16: 45.0, 32: 80.0}, {})
"""About fp32 on two cores."""


STEPS = (1.5, 3.0, 5.0)
"""Milliseconds of a row of each of three sub-models, of 2, 4 and 6 blocks."""


class Blocks:
    """The tokens in the cache of every block of a draft, per sequence of the batch.

    With a `target` they lie behind what it has committed, which is in all blocks. Whoever reads a
    slot that was never filled, or that another text has filled, is caught.
    """

    def __init__(self, target: ToySession | None) -> None:
        self.target = target
        self.rows: dict[tuple[int, int], list[int]] = {}

    def write(self, row: int, block: int, start: int, tokens: Sequence[int]) -> None:
        held = self.rows.get((row, block), [])
        if self.target is not None:
            length = int(self.target.lengths[row])
            assert start >= length, "a committed slot"
            committed = self.target._slots[row, :length, 1].tolist()
            held = committed + held[length:]
        assert len(held) >= start, f"block {block}: slots {len(held)} to {start} were never filled"
        self.rows[row, block] = [*held[:start], *tokens]

    def read(self, row: int, blocks: int) -> list[int]:
        texts = [self.rows[row, block] for block in range(blocks)]
        assert all(text == texts[0] for text in texts), "blocks hold different texts"
        return texts[0]


class SubModel:
    """Knows the target's mind in `skill` of ten contexts, and knows when it does not."""

    capacity = 512
    rows_cost = staticmethod(usual_cost)

    def __init__(
        self,
        blocks: Blocks,
        depth: int,
        skill: int,
        step: float,
        model: ToySession,
        heat: float = 1.0,
    ) -> None:
        self.blocks, self.depth, self.skill, self.step = blocks, depth, skill, step
        self.agreement = max(0.05, min(skill / 10, 0.98))
        self.shares = blocks.target is not None
        self.model, self.heat = model, heat
        self.calls: list[int] = []

    def alone(self) -> SubModel:
        raise AssertionError("nobody asks for it")

    def follow(self, row: int, length: int, tokens: Sequence[int], asked: int = 1) -> Scores:
        assert asked == 1
        row = row if self.shares else 0  # caches of its own are of one sequence, wherever it sits
        self.calls.append(len(tokens))
        for block in range(self.depth):
            self.blocks.write(row, block, length, tokens)
        text = self.blocks.read(row, self.depth)
        seen = np.stack([np.arange(len(text)), np.asarray(text)], axis=1)
        logits = self.model.logits_of(seen) * self.heat
        mood = zlib.crc32(np.ascontiguousarray(seen[-3:]).tobytes())
        if mood % 10 >= self.skill:
            logits = np.roll(logits, 1 + mood % 7) * 0.2
        logits = logits[None, None]
        return Scores(logits.argmax(-1), logits)


def nest(
    target: ToySession | None,
    skills: Sequence[int] = (5, 7, 9),
    steps: Sequence[float] = STEPS,
    **model: Any,
) -> list[SubModel]:
    blocks = Blocks(target)
    like = ToySession(**model)
    return [
        SubModel(blocks, 2 * place + 2, skill, step, like)
        for place, (skill, step) in enumerate(zip(skills, steps, strict=True))
    ]


def policy(rule: str = "point-mass", **options: object) -> Recipe:
    needs = ("draft", "depths")
    return Recipe(f"{rule}{options}", "", "", True, needs, "", "sorted-draft", rule, options)


Make = Callable[[ToySession], Sequence[SubModel]]


def engine_of(make: Make, chosen: Recipe, costs: Costs | None, **session: Any) -> Engine:
    target = ToySession(**session)

    def depths() -> Any:
        return make(target)

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
