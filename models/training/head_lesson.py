"""The lesson of a draft head: what the host says next, on texts of which some are held out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from graftline.models.training.losses import Scored
from graftline.models.training.packs import Order, pack
from graftline.models.training.rows import Row
from graftline.models.training.student import (
    Acceptance,
    Student,
    acceptance,
    loss_of,
    price_of,
    spoken,
)
from graftline.models.training.trainer import Course, Look, Settings

COLD = 0.2
"""The share of a training that learns by KL divergence: total variation says nothing from cold."""


@dataclass(frozen=True)
class HeadSettings(Settings):
    """A step reads up to `tokens` positions, and scores up to `scored` tokens of the vocabulary."""

    tokens: int = 2048
    scored: int = 8192


class HeadLesson:
    """One head, taught by rows of texts."""

    def __init__(
        self,
        student: Student,
        rows: Sequence[Row],
        held_out: Sequence[Row],
        settings: HeadSettings,
    ) -> None:
        self.student, self.rows, self.settings = student, rows, settings
        self.order = Order([len(row) for row in rows], settings.tokens, settings.seed)
        self.held_out = [pack([row]) for row in sorted(held_out, key=len)]
        self.parameters = {
            name: p for name, p in student.module.named_parameters() if p.requires_grad
        }

    def loss(self, step: int, progress: float, random: torch.Generator) -> torch.Tensor:
        """Of the texts of a step; without a gradient where they are too short to draft in."""
        texts = pack([self.rows[i] for i in self.order.at(step)])
        student = self.student
        if student.places is not None:
            texts = texts.asking(student.places, random)
        chosen = Scored.choose(
            spoken(texts), student.drafted, student.vocabulary, self.settings.scored, random
        )
        return loss_of(student, texts, chosen, progress < COLD)

    def look(self) -> Look:
        """The acceptance of drafts; its score is the expected tokens of a step, less the price of
        what is saved too little."""
        found, price = list[Acceptance](), 0.0
        for one in self.held_out:
            found.append(acceptance(self.student, one))
            price += float(price_of(self.student)) / len(self.held_out)
        total = sum(found[1:], found[0])
        numbers = [list(total.reached), list(total.right)]
        told = f"held-out acceptance {total}" + (f", at a price of {price:.2f}" if price else "")
        return Look(total.tokens - price, numbers, told, bool(total.right[0]))


def acceptance_of(course: Course) -> Acceptance | None:
    """The acceptance of the weights that a course keeps; None where nobody has looked."""
    if course.found is None:
        return None
    reached, right = course.found
    return Acceptance(tuple(map(int, reached)), tuple(map(int, right)))
