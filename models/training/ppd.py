"""PPD's prompt tokens in training (arXiv 2405.18628): a few embeddings, which the frozen host reads
in a chain behind a text, learn to make it foretell what comes further on.

Behind each chosen position of a text stands a chain of its own: prompt token i sees the text up to
there and the prompt tokens before it, at the position that it is at. One pass of the host reads a
text with all of its chains.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from graftline.errors import CheckpointError
from graftline.models.heads.ppd import ADAPTER, EMBEDDINGS
from graftline.models.training.frozen import FrozenHost
from graftline.models.training.packs import Pack
from graftline.models.training.student import Published, scored

PLACES = 64
"""Chains of a text that one pass reads, and at which a step of training drafts."""
CHECKED = 12
"""Tokens on which it is seen whether the host reads chains as they are meant."""
NEAR, NEAR_BF16 = 1e-3, 0.1
"""The largest difference of a state there, relative to the largest number; in bf16 of 8 bits."""


class PromptTokens(nn.Module):
    """`rows` [K, H]."""

    def __init__(self, rows: torch.Tensor) -> None:
        super().__init__()
        self.own = nn.ParameterList([nn.Parameter(rows.clone())])  # a table, and no layer

    @property
    def rows(self) -> torch.Tensor:
        """[K, H]."""
        return self.own[0]


class Ppd:
    """Prompt tokens for a frozen host. They begin as embeddings of tokens drawn at random."""

    places = PLACES

    def __init__(self, host: FrozenHost, count: int) -> None:
        """Raises CheckpointError for a host that does not read chains beside a text."""
        self.lm_head, self.bias, self.source = host.lm_head, host.bias, host.source
        self.depths, self.vocabulary = count, host.vocabulary
        self.drafted = torch.arange(host.vocabulary)
        self.embedding = host.embedding
        self.decoder = plain_decoder(host, "prompt tokens")
        self.module = PromptTokens(host.embedding[torch.randperm(host.vocabulary)[:count]])
        _check(host, self)

    def drafts(self, pack: Pack) -> Sequence[torch.Tensor]:
        """What lm_head reads at each prompt token behind every position that is asked for, and
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
        rows = self.module.rows.repeat(chains, 1)
        embedded = torch.cat([self.embedding[ids], rows])  # in fp32, as the host computes
        ahead = torch.arange(1, self.depths + 1)
        positions = torch.cat([torch.arange(count), (places[:, None] + ahead).reshape(-1)])
        out = self.decoder(
            inputs_embeds=embedded[None], position_ids=positions[None], use_cache=False,
            attention_mask=_mask(count, places, self.depths),
        )  # fmt: skip
        states = out.last_hidden_state[0]
        return states[:count], states[count:].unflatten(0, (chains, self.depths))

    def scores(self, states: torch.Tensor, depth: int, ids: torch.Tensor | None) -> torch.Tensor:
        """By the host's lm_head and its bias."""
        return scored(states, self.lm_head, self.bias, ids)

    def place(self, depth: int) -> int:
        """What a prompt token says is noted where its chain stands."""
        return 0

    def weight(self, depth: int) -> float:
        """As Medusa's heads: 0.8 to the depth."""
        return 0.8**depth

    def published(self) -> Published:
        """adapter_model.safetensors and adapter_config.json, as PEFT and PPD's own loader read
        them."""
        config = {
            "base_model_name_or_path": self.source, "inference_mode": True, "num_exits": 1,
            "num_special_tokens": self.depths, "num_transformer_submodules": 1,
            "num_virtual_tokens": self.depths, "task_type": "CAUSAL_LM",
            "token_dim": self.embedding.shape[1], "use_custom_lm_head": False,
            "use_prefix_tuning": False, "virtual_tokens_per_special_token": 1,
            "vt_attention_type": "decoder",
        }  # fmt: skip
        tensors = {EMBEDDINGS: self.module.rows}
        return Published(
            "PPD", "adapter_model.safetensors", config, tensors, config_file=ADAPTER
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


@torch.no_grad()
def _check(host: FrozenHost, student: Ppd) -> None:
    """Raise CheckpointError unless the host reads a text beside chains as it reads it alone, and
    a chain of a text's own tokens as that text."""
    ids = (torch.arange(CHECKED) * 7 + 1) % host.vocabulary
    wanted = host.read(ids.tolist())[0]
    rows, place = student.module.own[0], CHECKED - student.depths - 1
    kept = rows.detach().clone()
    rows.copy_(student.embedding[ids[place + 1 :]])
    text, chains = student.read(ids, torch.tensor([0, place]))
    rows.copy_(kept)
    got = torch.cat([text, chains[1]]).float()
    wanted = torch.cat([wanted, wanted[place + 1 :]])
    off = float((got - wanted).abs().max() / wanted.abs().max())
    if not off <= (NEAR_BF16 if host.bf16 else NEAR):
        raise CheckpointError(
            f"{host.folder}: the model reads a text otherwise beside rows that it does not see "
            f"(off by {off:.2g}); prompt tokens cannot be trained beside it"
        )
