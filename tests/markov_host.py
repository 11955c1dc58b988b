"""Checkpoints of hosts whose next token follows from the last one alone, so that what comes is
known, and heads that know it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from graftline.models.host import Host
from tests.medusa_files import Tensors
from tests.tiny_checkpoints import WIDE, TinyCheckpoint

VOCABULARY, HIDDEN = WIDE.vocabulary, WIDE.hidden
Next = Callable[[int], int]


def around(token: int) -> int:
    """Seven further, within the ids."""
    return (token + 7) % VOCABULARY


def same(token: int) -> int:
    """One token for ever."""
    return token


class MarkovCheckpoint(TinyCheckpoint):
    """Its blocks add nothing, and its lm_head scores `following` of the token that was read."""

    following: Next = staticmethod(around)

    def host(self, full_export: bool = False, watch: Any = None) -> Host:
        host = super().host(full_export, watch)
        weights = host.model.graph.initializers
        for name, value in weights.items():
            if name.endswith((".o.weight", ".down.weight")):
                _put(value, np.zeros_like(_numbers(value)))
        _put(weights["norm.weight"], np.ones(HIDDEN, np.float32))
        _put(weights["lm_head.weight"], _scoring(_directions(weights), self.following, 1))
        return host


class Repeating(MarkovCheckpoint):
    """Says the last token for ever."""

    following: Next = staticmethod(same)


def right_heads(checkpoint: TinyCheckpoint, heads: int = 3, following: Next = around) -> Tensors:
    """V1 heads that know what comes; their layer leaves the state as it is."""
    weights = checkpoint.host().model.graph.initializers
    found = right_layers(heads)
    for head in range(heads):
        found[f"{head}.1.weight"] = _scoring(_directions(weights), following, head + 2)
    return found


def right_layers(heads: int = 3) -> Tensors:
    """V2 heads that say what the host itself says: right where it repeats a token."""
    found: Tensors = {}
    for head in range(heads):
        found[f"{head}.0.linear.weight"] = np.zeros((HIDDEN, HIDDEN), np.float32)
        found[f"{head}.0.linear.bias"] = np.zeros(HIDDEN, np.float32)
    return found


def right_sequence(checkpoint: TinyCheckpoint, heads: int = 3, following: Next = around) -> Tensors:
    """Hydra heads that know what follows the last token of those they read, and look at nothing
    else."""
    matrix = _scoring(_directions(checkpoint.host().model.graph.initializers), following, 1)
    found: Tensors = {}
    for head in range(heads):
        width, name = HIDDEN * (head + 2), f"hydra_mlp.{head}.0"
        last = np.zeros((HIDDEN, width), np.float32)
        last[:, -HIDDEN:] = np.eye(HIDDEN)
        for part, weight in (("linear", np.zeros_like(last)), ("res_connection", last)):
            found[f"{name}.{part}.weight"] = weight
            found[f"{name}.{part}.bias"] = np.zeros(HIDDEN, np.float32)
        found[f"hydra_lm_head.{head}.weight"] = matrix
        found[f"hydra_lm_head.{head}.bias"] = np.zeros(VOCABULARY, np.float32)
    return found


def _directions(weights: Any) -> np.ndarray:
    table = _numbers(weights["embed.weight"])
    return table / np.linalg.norm(table, axis=-1, keepdims=True)


def _scoring(directions: np.ndarray, following: Next, steps: int) -> np.ndarray:
    """[V, H]: the row of the token that follows a token after so many steps is that token's
    direction."""
    matrix = np.zeros_like(directions)
    for token in range(len(directions)):
        then = token
        for _ in range(steps):
            then = following(then)
        matrix[then] += 3.0 * directions[token]
    return matrix.astype(np.float32)


def _numbers(value: ir.Value) -> np.ndarray:
    assert value.const_value is not None
    return value.const_value.numpy()


def _put(value: ir.Value, numbers: np.ndarray) -> None:
    value.const_value = ir.tensor(np.asarray(numbers, np.float32), name=value.name)


def path_of(folder: Path, name: str) -> Path:
    """Where such a checkpoint is said to lie."""
    place = folder / name
    place.mkdir()
    return place
