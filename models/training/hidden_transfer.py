"""Hidden Transfer in training (arXiv 2404.12022): linear maps of a middle state of the frozen host,
one for each token to come, learn to make it foretell them in its remaining blocks."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn.functional import linear

from graftline.errors import GraftlineError
from graftline.models.heads.hidden_transfer import WEIGHT
from graftline.models.training.chains import ChainStudent
from graftline.models.training.frozen import FrozenHost
from graftline.models.training.student import Published

Make = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""make(states [H] of all rows [N, H], places [P]) -> states of the chains behind them [P, K, H]."""


def entered_behind(blocks: int | None, count: int) -> int:
    """Behind how many of a host's `count` blocks states enter: half of them unless it is said.
    Raises GraftlineError."""
    if count < 2:
        raise GraftlineError("hidden-transfer: states enter between blocks, and this model has one")
    chosen = count // 2 if blocks is None else blocks
    if not 1 <= chosen < count:
        raise GraftlineError(
            f"--enter {chosen}: the model has {count} blocks; use 1 to {count - 1}"
        )
    return chosen


class TransferModule(nn.Module):
    """K maps [H, H], which leave a state as it is at first."""

    def __init__(self, count: int, hidden: int) -> None:
        super().__init__()
        self.maps = nn.ParameterList([nn.Parameter(torch.eye(hidden)) for _ in range(count)])

    def forward(self, states: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
        """[P, K, H]: states of the chains behind some places of a text [N, H]."""
        rows = states[places]
        return torch.stack([linear(rows, matrix) for matrix in self.maps], dim=1)


class HiddenTransfer(ChainStudent):
    """Maps of the state behind the first `behind` blocks of a frozen host."""

    what = "transfers"

    def __init__(self, host: FrozenHost, count: int, behind: int | None) -> None:
        """Raises GraftlineError for blocks that the host has not, and CheckpointError for one that
        does not read chains beside a text."""
        super().__init__(host, count)
        self.behind, self.layers = entered_behind(behind, host.layers), host.layers
        self.module = TransferModule(count, host.hidden)
        self._make: Make = self.module
        self._places = torch.zeros(0, dtype=torch.long)
        block = host.blocks[self.behind]
        block.register_forward_pre_hook(self._enter, with_kwargs=True)
        self.check(host)

    def rows(self) -> torch.Tensor:
        """Zeros: what these rows are in the first blocks nobody reads."""
        return torch.zeros(self.depths, self.embedding.shape[1])

    def read(
        self, ids: torch.Tensor, places: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """States of a text [N, H], and of the chains behind some of its positions [P, K, H]."""
        self._places = places
        try:
            return super().read(ids, places)
        finally:
            self._places = places[:0]

    def _enter(self, block: Any, given: Any, named: dict[str, Any]) -> Any:
        """Put the chains' states in the place of what the first blocks made of their rows."""
        if not len(self._places):
            return None
        x: torch.Tensor = given[0] if given else named["hidden_states"]
        text = x.shape[1] - len(self._places) * self.depths
        made = self._make(x[0], self._places).to(x.dtype)
        entered = torch.cat([x[:, :text], made.flatten(0, 1)[None]], dim=1)
        if given:
            return (entered, *given[1:]), named
        return given, {**named, "hidden_states": entered}

    @contextmanager
    def as_text(self, ids: torch.Tensor, place: int) -> Generator[None]:
        """States that enter are those that the text has there."""
        count = torch.arange(1, self.depths + 1)
        last = len(ids) - 1
        self._make = lambda x, places: x[(places[:, None] + count).clamp_max(last)]
        try:
            yield
        finally:
            self._make = self.module

    def published(self) -> Published:
        """model.safetensors and config.json."""
        config = {
            "base_model_name_or_path": self.source, "hidden_size": self.embedding.shape[1],
            "num_hidden_layers": self.layers, "transfer_layer": self.behind,
        }  # fmt: skip
        tensors = {WEIGHT.format(n): matrix for n, matrix in enumerate(self.module.maps)}
        notes = {"enters behind": f"{self.behind} of {self.layers} blocks"}
        return Published("Hidden Transfer", "model.safetensors", config, tensors, notes)
