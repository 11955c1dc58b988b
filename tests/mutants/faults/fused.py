"""The fused step: acceptance, commit, the next draft and the random stream."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as ir

from faults.graphs import (
    constant,
)
from faults.mutant import Apply, Mutant, Touched, instead
from faults.passes import STEP
from graftline.passes.grafts import draws, fuse_draft, fuse_verify


def _called(module: Any, plugin: str, change: Callable[[ir.Model, Any, list[ir.Value]], Any],
            where: str = "inputs") -> Apply:  # fmt: skip
    """The inputs or outputs of one of our operators' calls become change(model, emit, them)."""

    def make(real: Any, touched: Touched) -> Any:
        def wrong(model: Any, emit: Any, op_: Any, inputs: Any, **options: Any) -> Any:
            if op_.name != plugin:
                return real(model, emit, op_, inputs, **options)
            touched.count += 1
            if where == "inputs":
                return real(model, emit, op_, change(model, emit, list(inputs)), **options)
            return change(model, emit, real(model, emit, op_, inputs, **options))

        return wrong

    return instead(module, "call", make)


def _plus(place: int, number: int) -> Callable[[ir.Model, Any, list[ir.Value]], list[ir.Value]]:
    def change(model: ir.Model, emit: Any, values: list[ir.Value]) -> list[ir.Value]:
        old = values[place]
        new = emit.op("Add", [old, constant(model, number, np.int64)])
        new.type, new.shape = old.type, old.shape
        return [new if i == place else v for i, v in enumerate(values)]

    return change


def _path_early(model: ir.Model, emit: Any, values: list[ir.Value]) -> list[ir.Value]:
    """The rows of an accepted path are taken one row earlier, behind the root."""
    cache, path, *rest = values
    real = emit.op("Greater", [path, constant(model, 0, np.int64)])
    step = emit.op("Cast", [real], to=ir.DataType.INT64)
    new = emit.op("Sub", [path, step])
    new.type, new.shape = path.type, path.shape
    return [cache, new, *rest]


def _table_rolled(model: ir.Model, emit: Any, values: list[ir.Value]) -> list[ir.Value]:
    """Every token's candidates are those of the token before it."""
    table = values[0]
    ends = [constant(model, [n], np.int64) for n in (-1, 1 << 40, 0, 0, -1)]
    last = emit.op("Slice", [table, ends[0], ends[1], ends[2]])
    rest = emit.op("Slice", [table, ends[3], ends[4], ends[2]])
    new = emit.op("Concat", [last, rest], axis=0)
    new.type, new.shape = table.type, table.shape
    return [new, *values[1:]]


def _one_too_many(model: ir.Model, emit: Any, values: list[ir.Value]) -> list[ir.Value]:
    return _plus(2, 1)(model, emit, values)


FUSED = [
    Mutant("accepts-one-too-many", "fuse-verify", "count is one too many",
           "plain", "fused", _called(fuse_verify, "TreeVerify", _one_too_many, "outputs"), STEP),
    Mutant("commits-one-row-early", "fuse-verify: _commit", "a path's rows are one row off",
           "plain", "fused", _called(fuse_verify, "KVCommit", _path_early), STEP),
    Mutant("draft-rows-shifted", "fuse-draft", "a token's candidates are another's",
           "plain", "drafted", _called(fuse_draft, "DraftTree", _table_rolled), STEP),
    Mutant("random-stream-of-the-next-turn", "draws: uniforms", "draws are numbered from one",
           "plain", "fused", _called(draws, "Uniforms", _plus(1, 1)), STEP),
    Mutant("random-stream-of-another-seed", "draws: uniforms", "the seed is another",
           "plain", "fused", _called(draws, "Uniforms", _plus(0, 1)), STEP),
]  # fmt: skip
