"""A bigram matrix for parallel heads, from counts alone: each head is scored by the token before
its own too, as DSpark's Markov head does for a block.

Parallel heads say what stands i + 2 places on without knowing what stands i + 1 places on; the
matrix (`bigrams.py`) adds that. How much of it is added is what drafts longest on answers that were
not counted.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from graftline.errors import CheckpointError, GraftlineError
from graftline.models.heads.head import Head
from graftline.models.heads.medusa import BIGRAMS, MedusaSettings
from graftline.models.host import Watch
from graftline.models.training.bigrams import expected_counts, factorised, information
from graftline.models.training.frozen import FrozenHost
from graftline.models.training.medusa import Medusa
from graftline.models.training.packs import Pack, pack
from graftline.models.training.rows import Row
from graftline.models.training.student import Acceptance, Published, acceptance, scored
from graftline.tensors import numbers

RANK = 32
"""Unless it is said: 6 MB in fp16 for 49,152 tokens."""
SCALES = (0.25, 0.5, 1.0, 1.5, 2.0, 3.0)
"""Shares of the matrix that are tried: the host's best token is wanted, and not one of its chances.
"""
APART, MOST = 8, 2048
"""One text in so many is not counted: on these, up to so many tokens, the shares are tried."""


class Markov:
    """Heads of Medusa's over a frozen host, and bigrams of its answers. Nothing is learned by
    steps."""

    places = None

    def __init__(
        self, host: FrozenHost, head: Head, rows: Sequence[Row], rank: int, say: Watch
    ) -> None:
        """Raises CheckpointError for heads of another kind or model, and GraftlineError where the
        counts bring nothing."""
        self.base, self.head = medusa_of(host, head), head
        self.depths, self.vocabulary, self.drafted = (
            self.base.depths, self.base.vocabulary, self.base.drafted,
        )  # fmt: skip
        self.module = nn.Module()
        if rank > self.vocabulary:
            raise GraftlineError(f"--rank {rank}: the model has {self.vocabulary} tokens")
        if len(rows) < 2:
            raise GraftlineError(
                "bigrams are counted on some answers and tried on others, and there is one; give "
                "more prompts"
            )
        tried = rows[::APART]
        counted = [row for place, row in enumerate(rows) if place % APART]
        counts = expected_counts(counted, self.vocabulary)
        say(f"bigrams: {counts.values().numel():,} pairs of {len(counted)} answers")
        w1, w2 = factorised(information(counts), rank)
        self.w1, self.w2 = w1.to(host.device), w2.to(host.device)
        self._scale(tried, say)

    def _scale(self, rows: Sequence[Row], say: Watch) -> None:
        """Take the share of the matrix that drafts longest."""
        texts, room = list[Pack](), MOST
        for row in rows:
            if room > 0:
                texts.append(pack([row]))
                room -= len(row)
        whole, found = self.w1, dict[float, float]()
        for share in (0.0, *SCALES):
            self.w1 = share * whole
            found[share] = _tokens(self, texts)
        best = max(found, key=lambda share: found[share])
        told = f"{found[best]:.2f} tokens a step with {best:g} of it, {found[0.0]:.2f} without"
        if not best:
            raise GraftlineError(
                f"bigrams of these answers bring nothing to {self.head.source} ({told}); give more "
                "prompts, or use the heads as they are"
            )
        say(f"bigrams: {told}")
        self.w1 = best * whole

    def drafts(self, pack: Pack) -> Sequence[torch.Tensor]:
        """The heads' states [B, L, H], and what the token before each draft says [B, L, r]."""
        states = self.base.drafts(pack)
        before = (self.w1[pack.shifted(pack.ids, depth + 1)] for depth in range(self.depths))
        return [torch.cat(pair, dim=-1) for pair in zip(states, before, strict=True)]

    def scores(self, states: torch.Tensor, depth: int, ids: torch.Tensor | None) -> torch.Tensor:
        """As the heads score, and the bigrams added."""
        own, before = states.split([states.shape[-1] - self.w1.shape[1], self.w1.shape[1]], dim=-1)
        return self.base.scores(own, depth, ids) + scored(before, self.w2, None, ids)

    def place(self, depth: int) -> int:
        """Where the heads stand."""
        return self.base.place(depth)

    def weight(self, depth: int) -> float:
        """That of the heads."""
        return self.base.weight(depth)

    def published(self) -> Published:
        """Medusa's files, with DSpark's names for the matrix."""
        plain, rank = self.base.published(), self.w1.shape[1]
        tensors = {**plain.tensors, BIGRAMS[0]: self.w1, BIGRAMS[1]: self.w2.contiguous()}
        config = {**plain.config, "markov_rank": rank, "markov_head_type": "vanilla"}
        of = self.head.source.name
        notes = {"bigrams": f"of rank {rank}, from counts, for the heads of {of}"}
        return Published(f"{plain.family} with bigrams", plain.file, config, tensors, notes)


def medusa_of(host: FrozenHost, head: Head) -> Medusa:
    """Published heads of Medusa's as they are trained. Raises CheckpointError for others."""
    sizes = head.settings
    if not isinstance(sizes, MedusaSettings) or sizes.layers != 1 or sizes.markov:
        raise CheckpointError(
            f"{head.source}: bigrams are added to Medusa heads of one layer that have none; train "
            "some: graftline train medusa"
        )
    wide = sizes.vocabulary or host.vocabulary
    if (sizes.hidden, wide) != (host.hidden, host.vocabulary):
        raise CheckpointError(
            f"{head.source}: heads over states of {sizes.hidden} numbers and {wide} tokens, and "
            f"{host.source} has {host.hidden} and {host.vocabulary}: they are another model's"
        )
    found = Medusa(host, sizes.heads, "v2" if sizes.shared else "v1")
    with torch.no_grad():
        for number, layer in enumerate(found.module.layers):
            assert isinstance(layer, nn.Linear)
            layer.weight.copy_(_tensor(head, f"head.{number}.layer.0.weight"))
            layer.bias.copy_(_tensor(head, f"head.{number}.layer.0.bias"))
        for number, matrix in enumerate(found.module.own):
            matrix.copy_(_tensor(head, f"head.{number}.lm_head.weight"))
    return found


def _tensor(head: Head, name: str) -> torch.Tensor:
    return torch.from_numpy(numbers(head.tensors[name]).copy())


def _tokens(student: Markov, texts: Sequence[Pack]) -> float:
    """Expected tokens of a step on these texts."""
    found = [acceptance(student, one) for one in texts]
    total: Acceptance = sum(found[1:], found[0])
    return total.tokens
