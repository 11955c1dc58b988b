"""PPD's prompt tokens in training (arXiv 2405.18628): a few embeddings, which the frozen host reads
in a chain behind a text, learn to make it foretell what comes further on."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager

import torch
from torch import nn

from graftline.models.heads.ppd import ADAPTER, EMBEDDINGS
from graftline.models.training.chains import ChainStudent
from graftline.models.training.frozen import FrozenHost
from graftline.models.training.student import Published


class PromptTokens(nn.Module):
    """`rows` [K, H]."""

    def __init__(self, rows: torch.Tensor) -> None:
        super().__init__()
        self.own = nn.ParameterList([nn.Parameter(rows.clone())])  # a table, and no layer

    @property
    def rows(self) -> torch.Tensor:
        """[K, H]."""
        return self.own[0]


class Ppd(ChainStudent):
    """Prompt tokens for a frozen host. They begin as embeddings of tokens drawn at random."""

    what = "prompt tokens"

    def __init__(self, host: FrozenHost, count: int) -> None:
        """Raises CheckpointError for a host that does not read chains beside a text."""
        super().__init__(host, count)
        self.module = PromptTokens(host.embedding[torch.randperm(host.vocabulary)[:count]])
        self.check(host)

    def rows(self) -> torch.Tensor:
        """The prompt tokens."""
        return self.module.rows

    @contextmanager
    def as_text(self, ids: torch.Tensor, place: int) -> Generator[None]:
        """Prompt tokens are those of the text."""
        rows = self.module.own[0]
        kept = rows.detach().clone()
        rows.copy_(self.embedding[ids[place + 1 : place + 1 + self.depths]])
        try:
            yield
        finally:
            rows.copy_(kept)

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
