"""Chains of rows behind the positions of a text, which a frozen host reads in one pass with it and
whose states foretell what comes further on.

Behind each chosen position stands a chain of its own: row i sees the text up to there and the rows
before it, at the position that it is at.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any, ClassVar

import torch
from torch import nn

from graftline.errors import CheckpointError
from graftline.models.training.frozen import FrozenHost
from graftline.models.training.host_scored import Parallel
from graftline.models.training.packs import Pack
from graftline.models.training.student import Published

PLACES = 64
"""Chains of a text that one pass reads, and at which a step of training drafts."""
CHECKED = 12
"""Tokens of a text behind which it is seen whether the host reads chains as they are meant."""
NEAR, NEAR_BF16 = 1e-3, 0.1
"""The largest difference of a state there, relative to the largest number; in bf16 of 8 bits."""


class ChainStudent(Parallel, ABC):
    """What is learned of chains beside a frozen host; `what` it is called in errors."""

    places = PLACES
    what: ClassVar[str]

    def __init__(self, host: FrozenHost, count: int) -> None:
        """For chains of `count` rows."""
        self.lm_head, self.bias, self.source = host.lm_head, host.bias, host.source
        self.depths, self.vocabulary = count, host.vocabulary
        self.drafted = torch.arange(host.vocabulary)
        self.embedding = host.embedding
        self.decoder = plain_decoder(host, self.what)

    @abstractmethod
    def rows(self) -> torch.Tensor:
        """What the host reads in the place of a chain's embeddings [K, H]."""

    @abstractmethod
    def as_text(self, ids: torch.Tensor, place: int) -> AbstractContextManager[None]:
        """While this holds, a chain behind that place of a text is what the text goes on with."""

    @abstractmethod
    def published(self) -> Published:
        """Its weights as they are published."""

    def drafts(self, pack: Pack) -> Sequence[torch.Tensor]:
        """What lm_head reads at each row of the chain behind every position that is asked for, and
        zeros elsewhere."""
        counted = pack.counted(2)
        made = torch.zeros(self.depths, *counted.shape, self.embedding.shape[1])
        for text, length in enumerate(pack.lengths.tolist()):
            for places in counted[text].nonzero()[:, 0].split(PLACES):
                states = self.read(pack.ids[text, :length], places)[1]
                made[:, text, places] = states.transpose(0, 1).float()
        return list(made)

    def read(
        self, ids: torch.Tensor, places: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """States of a text [N, H], and of the chains behind some of its positions [P, K, H]."""
        count, chains = len(ids), len(places)
        rows = self.rows().repeat(chains, 1)
        embedded = torch.cat([self.embedding[ids], rows])  # in fp32, as the host computes
        ahead = torch.arange(1, self.depths + 1)
        positions = torch.cat([torch.arange(count), (places[:, None] + ahead).reshape(-1)])
        out = self.decoder(
            inputs_embeds=embedded[None], position_ids=positions[None], use_cache=False,
            attention_mask=_mask(count, places, self.depths),
        )  # fmt: skip
        states = out.last_hidden_state[0]
        return states[:count], states[count:].unflatten(0, (chains, self.depths))

    @torch.no_grad()
    def check(self, host: FrozenHost) -> None:
        """Raise CheckpointError unless the host reads a text beside chains as it reads it alone,
        and a chain of a text's own tokens as that text."""
        ids = (torch.arange(CHECKED + self.depths) * 7 + 1) % host.vocabulary
        wanted = host.read(ids.tolist())[0]
        place = CHECKED - 1
        with self.as_text(ids, place):
            text, chains = self.read(ids, torch.tensor([0, place]))
        got = torch.cat([text, chains[1]]).float()
        wanted = torch.cat([wanted, wanted[place + 1 :]])
        off = float((got - wanted).abs().max() / wanted.abs().max())
        if not off <= (NEAR_BF16 if host.bf16 else NEAR):
            raise CheckpointError(
                f"{host.folder}: the model reads a text otherwise beside rows that it does not see "
                f"(off by {off:.2g}); {self.what} cannot be trained beside it"
            )


def plain_decoder(host: FrozenHost, what: str) -> Any:
    """The host without its lm_head, for a training of `what`. Raises CheckpointError where tokens
    are more than rows of a table, or where layers see a window, whose mask would have to be
    another."""
    embed = host.model.get_input_embeddings()
    if type(embed) is not nn.Embedding:
        raise CheckpointError(
            f"{host.folder}: the model computes the embeddings of its tokens "
            f"({type(embed).__name__}); {what} are trained beside plain tables"
        )
    kinds = set(getattr(host.config, "layer_types", None) or ())
    windowed = not kinds and getattr(host.config, "sliding_window", None)
    if windowed or kinds - {"full_attention"}:
        raise CheckpointError(
            f"{host.folder}: layers of this model see a window of the text; {what} are not trained "
            "beside such a model yet; train medusa or eagle"
        )
    decoder = host.model.get_decoder()
    decoder.requires_grad_(False)
    return decoder


def _mask(count: int, places: torch.Tensor, depths: int) -> torch.Tensor:
    """[1, 1, N + P K, N + P K], added to scores: a text sees itself up to each row, a chain the
    text up to its place and itself likewise."""
    size = count + len(places) * depths
    seen = torch.zeros(size, size, dtype=torch.bool)
    seen[:count, :count] = torch.ones(count, count, dtype=torch.bool).tril()
    behind = torch.arange(count)[None] <= places[:, None]
    seen[count:, :count] = behind.repeat_interleave(depths, 0)
    own = torch.ones(depths, depths, dtype=torch.bool).tril()
    seen[count:, count:] = torch.block_diag(*[own] * len(places))
    mask = torch.zeros(size, size)
    return mask.masked_fill_(~seen, torch.finfo(mask.dtype).min)[None, None]
