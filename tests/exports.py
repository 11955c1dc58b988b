"""What torch exports is kept and copied: many tests export the same tiny models, seconds each."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest

from graftline.models.tiny import FAMILIES, FURTHER

UNREAD = ("dtype", "_name_or_path", "transformers_version")
"""Of a config; no graph depends on them."""

WIDE = {"hidden_size": 64, "n_embd": 64, "d_model": 64, "head_dim": 16, "query_pre_attn_scalar": 16}


def wide(family: str) -> dict[str, int]:
    """Overrides that make the heads of a tiny model of the family 16 wide: those exports serve
    the raw graph, its canonical form and the engine of GroupQueryAttention."""
    known = {**FAMILIES, **FURTHER}[family]
    own = {k: v for k, v in WIDE.items() if k in known}
    return own if {"n_embd", "d_model"} & set(known) else {**own, "hidden_size": 64}


@dataclass
class Exports:
    """Exports by the class and the config of their models; a graph holds no weights."""

    kept: dict[str, Any] = field(default_factory=dict[str, Any])

    def keep(self, patch: pytest.MonkeyPatch) -> None:
        """While `patch` holds, graftline exports a model once and copies it from then on."""
        from graftline.models.export import export

        real: Callable[..., Any] = export.export

        def once(model: Any, watch: Callable[[str], None]) -> Any:
            key = _key(model)
            if key not in self.kept:
                self.kept[key] = real(model, watch)
            made = self.kept[key]
            return export.Exported(made.model.clone(), made.weights)

        patch.setattr(export, "export", once)


def _key(model: Any) -> str:
    config = {k: v for k, v in model.config.to_dict().items() if k not in UNREAD}
    dtypes = sorted({str(p.dtype) for p in model.parameters()})
    attention = model.config._attn_implementation
    shape = str(getattr(model, "shape", ""))  # of a draft head, whose config is not all of it
    return json.dumps([type(model).__name__, shape, dtypes, attention, config], sort_keys=True,
                      default=str)  # fmt: skip
