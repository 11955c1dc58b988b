"""What is trained: a head that drafts the tokens one, two, ... places behind the next one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import torch
from torch import nn
from torch.nn.functional import linear

from graftline.models.config_file import CONFIG
from graftline.models.training.losses import LIKELY, Scored, Wanted, draft_loss
from graftline.models.training.packs import Pack

ROWS = 512
"""Rows whose whole vocabulary is scored at once."""


@dataclass(frozen=True)
class Published:
    """A trained head in its family's form: its config, and tensors in a file of this name; `notes`
    are rows of its card."""

    family: str
    file: str
    config: Mapping[str, Any]
    tensors: Mapping[str, torch.Tensor]
    notes: Mapping[str, str] = field(default_factory=dict[str, str])
    config_file: str = CONFIG


def scored(
    states: torch.Tensor, matrix: torch.Tensor, bias: torch.Tensor | None, ids: torch.Tensor | None
) -> torch.Tensor:
    """Scores of states [..., H] by a matrix [V, H] and its bias: of the vocabulary, or of `ids`."""
    if ids is None:
        return linear(states, matrix, bias)
    return linear(states, matrix[ids], None if bias is None else bias[ids])


class Student(Protocol):
    """A head in training. Its draft at depth i (from 0 on), made at the position whose state it
    reads, is of the token i + 2 places on. `drafted` are the host's ids [D] that it may draft, of a
    `vocabulary`."""

    depths: int
    vocabulary: int
    drafted: torch.Tensor

    @property
    def places(self) -> int | None:
        """Positions of a text at which a step of training drafts; None: all."""
        ...

    @property
    def module(self) -> nn.Module:
        """What is learned, and the host's frozen weights beside it."""
        ...

    def drafts(self, pack: Pack) -> Sequence[torch.Tensor]:
        """For each depth states [B, L, H], at the position i + 1 places before the token."""
        ...

    def scores(self, states: torch.Tensor, depth: int, ids: torch.Tensor | None) -> torch.Tensor:
        """Logits [R, C] of states [R, H] for the tokens `ids` [C], or for all that it drafts."""
        ...

    def place(self, depth: int) -> int:
        """How many places behind the position where drafting began a depth's states stand."""
        ...

    def weight(self, depth: int) -> float:
        """How much of the loss a depth is; 0: it is only looked at."""
        ...

    def published(self) -> Published:
        """Its weights as they are published."""
        ...


@runtime_checkable
class Priced(Protocol):
    """A student that is to save something besides foreseeing."""

    def price(self) -> torch.Tensor:
        """What it saves too little on the pack that it drafted last, in terms of the loss."""
        ...


@runtime_checkable
class Sure(Protocol):
    """A student that also says how sure it is of each draft."""

    def sureness(self, states: torch.Tensor) -> torch.Tensor:
        """Logits [R] of the chance that the draft of each of the states [R, H] is accepted."""
        ...


def price_of(student: Student) -> torch.Tensor:
    """Its price; 0 of a student that saves nothing."""
    return student.price() if isinstance(student, Priced) else torch.zeros(())


def loss_of(student: Student, pack: Pack, scored: Scored, cold: bool) -> torch.Tensor:
    """The weighted loss of all depths, and the price of a student that has one."""
    total = torch.zeros(())
    for depth, states in enumerate(student.drafts(pack)):
        ahead = depth + 2 - student.place(depth)  # from where the state stands
        rows = pack.counted(ahead, student.place(depth))
        if not student.weight(depth) or not rows.any():
            continue
        wanted = Wanted(
            pack.shifted(pack.best, ahead - 1)[rows],
            pack.shifted(pack.scores, ahead - 1)[rows],
            pack.shifted(pack.ids, ahead)[rows],
        )
        logits = student.scores(states[rows], depth, scored.ids)
        sure = student.sureness(states[rows]) if isinstance(student, Sure) else None
        total = total + student.weight(depth) * draft_loss(logits, wanted, scored, cold, sure)
    total = total / sum(student.weight(depth) for depth in range(student.depths))
    return total + price_of(student)


def spoken(pack: Pack) -> torch.Tensor:
    """The ids that a pack's texts speak of: their tokens and the host's likeliest."""
    inside = torch.arange(pack.ids.shape[1])[None] < pack.lengths[:, None]
    return torch.cat([pack.ids[inside], pack.best[inside][:, :LIKELY].reshape(-1)])


@dataclass(frozen=True)
class Acceptance:
    """Of drafts on texts that were not trained on: at each depth how many were `reached`, all
    shallower ones being right, and how many of them were right: the host's own best."""

    reached: tuple[int, ...]
    right: tuple[int, ...]

    @property
    def shares(self) -> tuple[float, ...]:
        """The share that was right, by depth."""
        pairs = zip(self.right, self.reached, strict=True)
        return tuple(right / reached if reached else 0.0 for right, reached in pairs)

    @property
    def tokens(self) -> float:
        """Expected tokens of a step that drafts one chain, the host's own token included."""
        total, chance = 1.0, 1.0
        for share in self.shares:
            chance *= share
            total += chance
        return total

    def __add__(self, other: Acceptance) -> Acceptance:
        def both(one: tuple[int, ...], two: tuple[int, ...]) -> tuple[int, ...]:
            return tuple(a + b for a, b in zip(one, two, strict=True))

        return Acceptance(both(self.reached, other.reached), both(self.right, other.right))

    def __str__(self) -> str:
        shares = " ".join(f"{share:.3f}" for share in self.shares)
        return f"{shares} ({self.tokens:.2f} tokens a step)"


@torch.no_grad()
def acceptance(student: Student, pack: Pack) -> Acceptance:
    """How many drafts of a pack are right. Chains go on where the text is what the host says."""
    alive = pack.counted(2)
    reached: list[int] = []
    right: list[int] = []
    for depth, states in enumerate(student.drafts(pack)):
        alive = alive & pack.counted(depth + 2)
        best = pack.shifted(pack.best[:, :, 0], depth + 1)
        made = torch.full_like(best, -1)
        made[alive] = _best(student, pack.shifted(states, student.place(depth))[alive], depth)
        reached.append(int(alive.sum()))
        hit = alive & (made == best)
        right.append(int(hit.sum()))
        alive = hit & (best == pack.shifted(pack.ids, depth + 2))
    return Acceptance(tuple(reached), tuple(right))


def _best(student: Student, states: torch.Tensor, depth: int) -> torch.Tensor:
    """The likeliest of all drafted tokens [R] for states [R, H]."""
    parts = [
        student.scores(part, depth, None).argmax(-1) for part in states.split(ROWS) if len(part)
    ]
    return student.drafted[torch.cat(parts)] if parts else torch.zeros(0, dtype=torch.long)
