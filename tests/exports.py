"""What torch exports is kept and copied: many tests export the same tiny models, seconds each.

It is kept in files outside the repository, for all processes of a run and for later ones. The key
is everything that a graph depends on: what the modules keep, the code of their files as it is in
memory, and the versions of the packages that export. What is kept by its address alone goes to no
file.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from importlib.metadata import version
from itertools import count
from pathlib import Path
from types import CodeType, FunctionType
from typing import Any

import onnx
import onnx_ir as ir
import pytest

from graftline.models.cache import place
from graftline.models.tiny import FAMILIES, FURTHER

UNREAD = ("dtype", "_name_or_path", "name_or_path", "transformers_version", "generation_config")
"""Of a model or its config; no graph depends on them."""
MODULES = ("_parameters", "_buffers", "_modules")
"""What a module keeps under these names is told by itself."""
ADDRESS, ONCE = " at 0x", count()
"""What is known by its address alone is never the same twice."""
PACKAGES = ("torch", "transformers", "onnx", "onnx-ir", "onnxscript")
EXPORTER = tuple(f"graftline.models.export.{f}" for f in ("export", "decomposed", "simplify"))
DAYS = 30
"""How long a file stays that no test reads."""

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

    folder: Path = field(default_factory=lambda: place("exports-of-tests"))
    kept: dict[str, Any] = field(default_factory=dict[str, Any])

    def keep(self, patch: pytest.MonkeyPatch) -> None:
        """While `patch` holds, graftline exports a model once and copies it from then on."""
        from graftline.models.export import export
        from graftline.models.heads import head_module
        from graftline.models.training.tensor_file import write_bytes

        real: Callable[..., Any] = export.export

        def once(model: Any, watch: Callable[[str], None]) -> Any:
            key, lasts = _key(model)
            if key not in self.kept:
                file = self.folder / f"{key}.onnx"
                if not (lasts and file.is_file()):
                    made = real(model, watch)
                    stored = _stored(made.model, made.weights)
                    if lasts:
                        write_bytes(file, stored)
                else:
                    os.utime(file)
                    stored = file.read_bytes()
                # the first reads what later ones read
                self.kept[key] = export.Exported(*_read(stored))
            made = self.kept[key]
            return export.Exported(made.model.clone(), made.weights)

        patch.setattr(export, "export", once)
        patch.setattr(head_module, "export", once)

    def forget(self) -> None:
        """Remove the files that no test has read for DAYS."""
        for file in self.folder.glob("*.onnx"):
            if file.stat().st_mtime < time.time() - DAYS * 86_400:
                file.unlink(missing_ok=True)


def _stored(model: ir.Model, weights: frozenset[str]) -> bytes:
    """As a file: `weights` have no data, and are inputs behind the graph's own."""
    graph = model.graph
    own, held = len(graph.inputs), [graph.initializers.pop(name) for name in sorted(weights)]
    graph.inputs.extend(held)
    proto = ir.serde.serialize_model(model)
    del graph.inputs[own:]
    for value in held:
        graph.initializers.add(value)
    proto.metadata_props.add(key="weights", value=str(len(held)))
    return proto.SerializeToString()


def _read(stored: bytes) -> tuple[ir.Model, frozenset[str]]:
    from graftline.models.export.simplify import named

    proto = onnx.ModelProto.FromString(stored)
    count = int(proto.metadata_props.pop().value)
    model = ir.serde.deserialize_model(proto)
    graph = model.graph
    held = list(graph.inputs[len(graph.inputs) - count :])
    del graph.inputs[len(graph.inputs) - count :]
    for value in held:
        graph.register_initializer(named(value))
    return model, frozenset(value.name or "" for value in held)


def _key(model: Any) -> tuple[str, bool]:
    """The classes of its modules, their parameters' sizes, their buffers' values and whatever else
    they keep: numbers, texts and shapes; and whether that is all known in another process, too."""
    before = next(ONCE)
    found: list[Any] = [sys.version, [version(name) for name in PACKAGES]]
    files = set(EXPORTER)
    for name, module in model.named_modules():
        kind = type(module)
        files |= {base.__module__ for base in kind.__mro__}
        found.append([name, kind.__module__, kind.__qualname__])
        found.append({k: _told(v) for k, v in vars(module).items() if k not in MODULES + UNREAD})
        found.append([(k, str(p.dtype), [*p.shape]) for k, p in module.named_parameters()])
        found.append([
            (k, str(b.dtype), [*b.shape], "" if b.is_meta else b.tolist())
            for k, b in module.named_buffers(recurse=False)
        ])  # fmt: skip
    found += [list(_code_of(name)) for name in sorted(files) if not name.startswith("torch.")]
    told = hashlib.sha256(json.dumps(found, sort_keys=True).encode()).hexdigest()
    return told, next(ONCE) == before + 1


def _code_of(name: str) -> Iterator[str]:
    """Every function and method that a file knows, as it is in memory: tests replace some."""
    for held in vars(sys.modules[name]).values():
        for one in (held, *(vars(held).values() if isinstance(held, type) else ())):
            code = getattr(getattr(one, "__func__", one), "__code__", None)
            if isinstance(code, CodeType):
                yield _digest(code)


def _digest(code: CodeType) -> str:
    """Of what it does: neither lines nor the folder it is in."""
    consts = [_digest(c) if isinstance(c, CodeType) else _in_order(c) for c in code.co_consts]
    parts = [code.co_qualname, code.co_code.hex(), *code.co_names, *code.co_varnames, *consts]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def _told(value: Any) -> Any:
    if hasattr(value, "to_dict"):
        config = {k: v for k, v in value.to_dict().items() if k not in UNREAD}
        attention = getattr(value, "_attn_implementation", "")
        return [json.dumps(config, sort_keys=True, default=str), attention]
    if isinstance(value, FunctionType) and value.__closure__ is None:
        return f"{value.__module__}.{value.__qualname__}"
    told = _in_order(value)
    return f"{told} {next(ONCE)}" if ADDRESS in told else told


def _in_order(value: Any) -> str:
    """Sets tell what they hold in another order in each process."""
    return repr(sorted(map(repr, value)) if isinstance(value, set | frozenset) else value)
