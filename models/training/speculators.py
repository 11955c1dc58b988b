"""What trained heads in the speculators format (vLLM) have alike: the host's lm_head, cut to the
tokens that are drafted, and the config."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn.functional import linear

from graftline.errors import CheckpointError
from graftline.models.heads.vocabulary import LM_HEAD, VERIFIER_LM_HEAD
from graftline.models.training.frozen import FrozenHost
from graftline.models.training.vocabulary import DraftVocabulary


class DraftLmHead:
    """The host's rows of the drafted tokens, `weight` [D, H], which are not learned. `places` [V]:
    the row of each of the host's ids, -1 without one. `whole`: all tokens are drafted. `written`:
    the file holds them, which other readers need; else its config says whose they are."""

    written = True

    def __init__(self, host: FrozenHost, words: DraftVocabulary) -> None:
        """Raises CheckpointError for a host whose lm_head has a bias."""
        if host.bias is not None:
            raise CheckpointError(
                f"{host.folder}: its lm_head has a bias, for which the speculators format has no "
                "place; train eagle or medusa"
            )
        self.words, self.whole = words, len(words.ids) == host.vocabulary
        self.places = torch.full((host.vocabulary,), -1)
        self.places[words.ids] = torch.arange(len(words.ids))
        rows = host.lm_head if self.whole else host.lm_head[words.ids]
        self.weight = nn.Parameter(rows, requires_grad=False)

    def rows(self, matrix: torch.Tensor, ids: torch.Tensor | None) -> torch.Tensor:
        """The rows of a matrix [D, ...] for the host's `ids` [C], or all of them."""
        return matrix if ids is None else matrix[self.places[ids]]

    def scores(self, states: torch.Tensor, ids: torch.Tensor | None) -> torch.Tensor:
        """Logits [R, C] of states [R, H] for the host's `ids` [C], or of all drafted tokens."""
        return linear(states, self.rows(self.weight, ids))

    def tensors(self) -> dict[str, torch.Tensor]:
        """lm_head, d2t and t2d; none of a head that drafts all tokens by the host's own."""
        if self.whole:
            return {}
        ids = self.words.ids
        own = {LM_HEAD: self.weight} if self.written else {}
        return {**own, "d2t": ids - torch.arange(len(ids)), "t2d": self.places >= 0}

    def keys(self) -> dict[str, bool]:
        """What a config says of rows that are not in the file."""
        return {} if self.written or self.whole else {VERIFIER_LM_HEAD: True}


@dataclass(frozen=True)
class Verifier:
    """The host as a config names it: what its users call it, and its class."""

    source: str
    family: str

    @classmethod
    def of(cls, host: FrozenHost) -> Verifier:
        """That of a host."""
        return cls(host.source, type(host.model).__name__)

    def config(
        self, kind: str, architecture: str, drafts: int, layer: Mapping[str, Any],
        own: Mapping[str, Any],
    ) -> dict[str, Any]:  # fmt: skip
        """config.json of a head of that `speculators_model_type`, which drafts so many tokens;
        `layer` is the config of its layers, and `own` are keys of its kind."""
        proposal = {"proposal_type": "greedy", "speculative_tokens": drafts,
                    "verifier_accept_k": 1, "accept_tolerance": 0.0}  # fmt: skip
        return {
            "architectures": [architecture], "speculators_model_type": kind, **own,
            "torch_dtype": "float16", "transformer_layer_config": dict(layer),
            "speculators_config": {
                "algorithm": kind, "default_proposal_method": "greedy",
                "proposal_methods": [proposal],
                "verifier": {"name_or_path": self.source, "architectures": [self.family]},
            },
        }  # fmt: skip
