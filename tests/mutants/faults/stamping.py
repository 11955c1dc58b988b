"""Stamping: a layer with another's weights, too few layers, another kind."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import onnx_ir as ir

from faults.mutant import Apply, Mutant, Touched, instead
from graftline.models.export import blocks, stamp


def _renamed(change: Callable[[str, int], int]) -> Apply:
    """A stamped layer reads the weight of the layer change(its name, its number)."""

    def make(real: Any, touched: Touched) -> Any:
        def rename(self: Any, name: str, layer: int) -> str:
            other: int = change(name, layer)
            touched.count += other != layer
            return real(self, name, other)

        return rename

    return instead(blocks.Layers, "rename", make)


def _stamped(change: Callable[[Any], Any]) -> Apply:
    """The list of the layers' kinds that is stamped from."""

    def make(real: Any, touched: Touched) -> Any:
        def stamped(model: Any, path: str, of: list[int], exported: int) -> list[str]:
            touched.count += 1
            return real(model, path, change(list(of)), exported)

        return stamped

    return instead(stamp, "stamp", make)


def _cloned(change: Callable[[int, list[ir.Node]], None]) -> Apply:
    """The nodes of a stamped layer."""

    def make(real: Any, touched: Touched) -> Any:
        def clone(*args: Any) -> Any:
            touched.count += 1
            out, made = real(*args)
            change(args[3], made)
            return out, made

        return clone

    return instead(stamp, "_clone", make)


def _first_epsilon(layer: int, made: list[ir.Node]) -> None:
    norms = [n for n in made if "Normalization" in n.op_type]
    if layer == 3:
        norms[0].attributes["epsilon"] = ir.AttrFloat32("epsilon", 1e-5)


def _other_kinds(of: list[int]) -> list[int]:
    """The last layer is stamped from a block of the other kind."""
    return [*of[:-1], 1 - of[-1]]


STAMPING = [
    Mutant("layer-stamped-twice", "models.stamp: _clone", "layer 3 has layer 2's weights",
           "llama", "checkpoint", _renamed(lambda n, i: 2 if i == 3 else i)),
    Mutant("down-of-another-layer", "models.stamp: _clone", "layer 3 has layer 4's down_proj",
           "llama", "checkpoint",
           _renamed(lambda n, i: 4 if i == 3 and "down_proj" in n else i)),
    Mutant("layers-in-another-order", "models.stamp: stamp", "layers 3 and 4 change places",
           "llama", "checkpoint", _renamed(lambda n, i: {3: 4, 4: 3}.get(i, i))),
    Mutant("last-layer-missing", "models.stamp: stamp", "one layer too few is stamped",
           "llama", "checkpoint", _stamped(lambda of: of[:-1])),
    Mutant("layer-too-many", "models.stamp: stamp", "the last layer is stamped twice",
           "llama", "checkpoint", _renamed(lambda n, i: min(i, 3))),
    Mutant("stamped-from-the-other-kind", "models.stamp: stamp",
           "a local layer is stamped from a global one",
           "gemma2", "checkpoint", _stamped(_other_kinds)),
    Mutant("epsilon-in-one-stamped-layer", "models.stamp: _clone",
           "epsilon 1e-5 in stamped layer 3",
           "llama", "alike", _cloned(_first_epsilon)),
]  # fmt: skip
