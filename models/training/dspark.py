"""DSpark heads in training: DFlash's, in which each token of a block is also scored by the one
before it (a Markov head), and whose drafts say how likely they are to be accepted.

The Markov head begins as the bigrams of the answers (`bigrams.py`), and is learned with the rest.
In training the token before a draft is the text's own: a chain goes on only where its drafts are.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import nn

from graftline.errors import GraftlineError
from graftline.models.training.bigrams import expected_counts, factorised, information
from graftline.models.training.dflash import BLOCK, BlockModule, DFlash
from graftline.models.training.frozen import FrozenHost
from graftline.models.training.packs import Pack
from graftline.models.training.rows import Row
from graftline.models.training.vocabulary import DraftVocabulary

RANK = 32
"""Unless it is said: 3 MB in fp16 for the 49,152 tokens that may stand before one."""


class SparkModule(BlockModule):
    """`own`: the Markov head's tables, w1 [V, r] of the token before and w2 [D, r] of the one that
    is drafted; `confidence` reads a state and a row of w1."""

    def __init__(self, base: BlockModule, w1: torch.Tensor, w2: torch.Tensor) -> None:
        nn.Module.__init__(self)
        self.fc, self.decoder = base.fc, base.decoder
        self.own = nn.ParameterList([nn.Parameter(w1), nn.Parameter(w2)])
        self.confidence = nn.Linear(self.fc.out_features + w1.shape[1], 1)


class DSpark(DFlash):
    """A DSpark head over a frozen host. Its states are a block's, and a row of w1 beside each."""

    kind: ClassVar[str] = "dspark"
    anchored: ClassVar[bool] = True
    _name, _architecture = "DSpark", "DSparkSpeculator"

    def __init__(
        self,
        host: FrozenHost,
        words: DraftVocabulary,
        learned: Sequence[Row],
        block: int = BLOCK,
        rank: int = RANK,
    ) -> None:
        """Raises GraftlineError for a rank beyond the vocabularies."""
        if rank > len(words.ids):
            raise GraftlineError(f"--rank {rank}: the head drafts {len(words.ids)} tokens")
        super().__init__(host, words, learned, block)
        w1, w2 = factorised(information(expected_counts(learned, host.vocabulary)), rank)
        w1, w2 = w1.to(host.device), w2.to(host.device)[words.ids].contiguous()
        self.module: SparkModule = SparkModule(self.module, w1.contiguous(), w2)

    def drafts(self, pack: Pack) -> Sequence[torch.Tensor]:
        """States and rows of w1 [B, L, H + r]."""
        w1 = self.module.own[0]
        before = (w1[pack.shifted(pack.ids, depth + 1)] for depth in range(self.depths))
        pairs = zip(super().drafts(pack), before, strict=True)
        return [torch.cat(pair, dim=-1) for pair in pairs]

    def scores(self, states: torch.Tensor, depth: int, ids: torch.Tensor | None) -> torch.Tensor:
        """As DFlash's, and what the token before says is added."""
        w1, w2 = self.module.own
        own, before = states.split([states.shape[-1] - w1.shape[1], w1.shape[1]], dim=-1)
        return super().scores(own, depth, ids) + before @ self.lm_head.rows(w2, ids).T

    def sureness(self, states: torch.Tensor) -> torch.Tensor:
        """By a linear layer."""
        return self.module.confidence(states)[:, 0]

    def _tensors(self) -> dict[str, torch.Tensor]:
        w1, w2 = self.module.own
        return {
            **super()._tensors(),
            "markov_head.markov_w1.weight": w1, "markov_head.markov_w2.weight": w2,
            "confidence_head.proj.weight": self.module.confidence.weight,
            "confidence_head.proj.bias": self.module.confidence.bias,
        }  # fmt: skip

    def _own(self) -> dict[str, Any]:
        return {
            **super()._own(), "markov_rank": self.module.own[0].shape[1],
            "markov_head_type": "vanilla", "enable_confidence_head": True,
            "confidence_head_with_markov": True,
        }  # fmt: skip
