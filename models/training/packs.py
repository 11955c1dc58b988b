"""Batches of whole texts: those of a step, padded to the longest, and which positions count."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from graftline.models.training.rows import Row

MIXED = 64
"""Texts among which those of like length are put together."""


@dataclass(frozen=True)
class Pack:
    """B texts padded to L: ids [B, L], taps [B, L, H], the host's best tokens and log-probabilities
    behind each position [B, L, K], each text's length and its first id to be foreseen [B]. `asked`
    [B, L]: the positions at which drafts are made, where these are not all."""

    ids: torch.Tensor
    taps: torch.Tensor
    best: torch.Tensor
    scores: torch.Tensor
    lengths: torch.Tensor
    starts: torch.Tensor
    asked: torch.Tensor | None = None

    def counted(self, ahead: int, behind: int = 0) -> torch.Tensor:
        """[B, L]: at which positions a draft of the token `ahead` places on is learned: it is part
        of the text, and drafting began `behind` places before, no earlier than at the state that
        gave the first token to be foreseen."""
        places = torch.arange(self.ids.shape[1])[None]
        inside = places + ahead < self.lengths[:, None]
        inside = inside if self.asked is None else inside & self.asked
        return inside & (places >= self.starts[:, None] - 1 + behind)

    def asking(self, most: int, random: torch.Generator) -> Pack:
        """The same, drafting at `most` positions of each text, drawn from those that count."""
        able = self.counted(2)
        drawn = torch.rand(able.shape, generator=random, device=random.device).to(able.device)
        order = drawn.masked_fill(~able, 2.0).argsort(dim=1)
        asked = torch.zeros_like(able)
        asked.scatter_(1, order[:, :most], True)
        return replace(self, asked=asked & able)

    def shifted(self, values: torch.Tensor, by: int) -> torch.Tensor:
        """[B, L, ...]: at each position the value `by` places on; the last is repeated."""
        places = (torch.arange(values.shape[1]) + by).clamp_max(values.shape[1] - 1)
        return values[:, places]


def pack(rows: Sequence[Row]) -> Pack:
    """The rows as one batch, on torch's default device as all that is made of it."""
    longest = max(len(row) for row in rows)

    def padded(values: Sequence[np.ndarray]) -> torch.Tensor:
        out = np.zeros((len(rows), longest, *values[0].shape[1:]), values[0].dtype)
        for place, value in enumerate(values):
            out[place, : len(value)] = value
        return torch.as_tensor(out)

    return Pack(
        padded([row.ids for row in rows]),
        padded([row.states.taps for row in rows]).float(),
        padded([row.states.best for row in rows]).long(),
        padded([row.states.scores for row in rows]).float(),
        torch.tensor([len(row) for row in rows]),
        torch.tensor([row.start for row in rows]),
    )


def epoch(lengths: Sequence[int], tokens: int, seed: int, number: int) -> list[list[int]]:
    """The packs of an epoch, as numbers of texts: a text once, in an order of its own, those of
    like length together, at most `tokens` padded positions a pack (or one text)."""
    random = np.random.default_rng((seed, number))
    order = random.permutation(len(lengths))
    packs: list[list[int]] = []
    for start in range(0, len(order), MIXED):
        near: list[int] = order[start : start + MIXED].tolist()
        near.sort(key=lengths.__getitem__)
        packs += _filled(near, lengths, tokens)
    return [packs[i] for i in random.permutation(len(packs))]


def _filled(near: Sequence[int], lengths: Sequence[int], tokens: int) -> Iterator[list[int]]:
    """Texts by rising length, cut where one more would be too many."""
    now: list[int] = []
    for text in near:
        if now and lengths[text] * (len(now) + 1) > tokens:
            yield now
            now = []
        now.append(text)
    if now:
        yield now


@dataclass
class Order:
    """Which texts a step reads, whatever step was asked for before."""

    lengths: Sequence[int]
    tokens: int
    seed: int
    _number: int = -1
    _first: int = 0
    _packs: tuple[list[int], ...] = ()

    def at(self, step: int) -> list[int]:
        """The texts of a step, from 0 on; steps are asked for in rising order."""
        while step >= self._first + len(self._packs):
            self._first += len(self._packs)
            self._number += 1
            self._packs = tuple(epoch(self.lengths, self.tokens, self.seed, self._number))
        return self._packs[step - self._first]
