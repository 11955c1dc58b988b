"""What torch exports is kept and copied: many tests export the same tiny models, seconds each."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import count
from types import FunctionType
from typing import Any

import pytest

from graftline.models.tiny import FAMILIES, FURTHER

UNREAD = ("dtype", "_name_or_path", "name_or_path", "transformers_version", "generation_config")
"""Of a model or its config; no graph depends on them."""
MODULES = ("_parameters", "_buffers", "_modules")
"""What a module keeps under these names is told by itself."""
ADDRESS, ONCE = " at 0x", count()
"""What is known by its address alone is never the same twice."""

WIDE = {"hidden_size": 64, "n_embd": 64, "d_model": 64, "head_dim": 16, "query_pre_attn_scalar": 16}


def wide(family: str) -> dict[str, int]:
    """Overrides that make the heads of a tiny model of the family 16 wide: those exports serve
    the raw graph, its canonical form and the engine of GroupQueryAttention."""
    known = {**FAMILIES, **FURTHER}[family]
    own = {k: v for k, v in WIDE.items() if k in known}
    return own if {"n_embd", "d_model"} & set(known) else {**own, "hidden_size": 64}


@dataclass
class Exports:
    """Exports by all that a model's graph depends on; a graph holds no weights."""

    kept: dict[str, Any] = field(default_factory=dict[str, Any])

    def keep(self, patch: pytest.MonkeyPatch) -> None:
        """While `patch` holds, graftline exports a model once and copies it from then on."""
        from graftline.models.export import export
        from graftline.models.heads import head_module

        real: Callable[..., Any] = export.export

        def once(model: Any, watch: Callable[[str], None]) -> Any:
            key = _key(model)
            if key not in self.kept:
                self.kept[key] = real(model, watch)
            made = self.kept[key]
            return export.Exported(made.model.clone(), made.weights)

        patch.setattr(export, "export", once)
        patch.setattr(head_module, "export", once)


def _key(model: Any) -> str:
    """The classes of its modules, their parameters' sizes, their buffers' values and whatever else
    they keep: numbers, texts and shapes."""
    found: list[Any] = []
    for name, module in model.named_modules():
        kind = type(module)
        found.append([name, kind.__module__, kind.__qualname__])
        found.append({k: _told(v) for k, v in vars(module).items() if k not in MODULES + UNREAD})
        found.append([(k, str(p.dtype), [*p.shape]) for k, p in module.named_parameters()])
        found.append([
            (k, str(b.dtype), [*b.shape], "" if b.is_meta else b.tolist())
            for k, b in module.named_buffers(recurse=False)
        ])  # fmt: skip
    return hashlib.sha256(json.dumps(found, sort_keys=True).encode()).hexdigest()


def _told(value: Any) -> Any:
    if hasattr(value, "to_dict"):
        config = {k: v for k, v in value.to_dict().items() if k not in UNREAD}
        attention = getattr(value, "_attn_implementation", "")
        return [json.dumps(config, sort_keys=True, default=str), attention]
    if isinstance(value, FunctionType) and value.__closure__ is None:
        return f"{value.__module__}.{value.__qualname__}"
    told = str(value)
    return f"{told} {next(ONCE)}" if ADDRESS in told else told
