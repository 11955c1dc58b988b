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
from graftline.passes.grafts import draws, fuse_block, fuse_draft, fuse_heads, fuse_verify
from graftline.passes.graph.emit import Emit
from graftline.passes.graph.operators import calls
from graftline.passes.graph.ports import input_of
from graftline.plugins.tree_verify import TREE_VERIFY
from graftline.runtimes import fused_block as runtime_block
from graftline.runtimes.head_text import HeadText
from graftline.runtimes.trees.template import Template

HEADS = {"head": "v1", "step": "fused"}
BLOCK = {"head": "eagle3", "step": "fused"}


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


def _text(name: str, old: str, new: str, module: Any = fuse_heads) -> Apply:
    """A formula of fuse-heads, or of fuse-block, written otherwise."""

    def make(real: str, touched: Touched) -> str:
        touched.count += old in real
        return real.replace(old, new)

    return instead(module, name, make)


def _block(name: str, old: str, new: str) -> Apply:
    return _text(name, old, new, fuse_block)


def _drafts_survive(real: Any, touched: Touched) -> Any:
    """A drafted row is written into the head's caches, at the slot behind what is accepted."""

    def bring_out(self: Any, model: ir.Model, copy: Any, *given: Any) -> None:
        emit = Emit(model.graph, self.name())
        for cache, written in copy._written.items():
            row, index = copy._drafted[cache][0], input_of(model, "write_index")
            late = emit.op("Add", [index, calls(model.graph, TREE_VERIFY)[0].outputs[2]])
            kept = emit.op("TensorScatter", [written, row, late], axis=2, mode="linear")
            kept.type, kept.shape, name = written.type, written.shape, written.name
            outputs = model.graph.outputs
            outputs[list(outputs).index(written)] = kept
            written.name, kept.name = f"{name}.read", name
            touched.count += 1
        real(self, model, copy, *given)

    return bring_out


def _last_alone(real: Any, touched: Touched) -> Any:
    """A drafted row sees itself, and none of the drafts before it."""

    def first(count: int, of: int) -> Any:
        touched.count += count > 1
        return real(count, of) & ~real(count - 1, of)

    return first


def _prompt_late(real: Any, touched: Touched) -> Any:
    """The head reads every token of a prompt with the feature of the one before."""

    def read(session: Any, row: int, text: Any) -> None:
        touched.count += 1
        real(session, row, HeadText(text.tokens, np.roll(text.features, 1, axis=0)))

    return read


def _template_off(column: str, change: Callable[[Any], Any]) -> Apply:
    """The runtime says a template's column otherwise."""

    def make(real: Any, touched: Touched) -> Any:
        def columns(self: Template) -> Any:
            touched.count += 1
            found = dict(real.fget(self))
            return {**found, column: change(found[column])}

        return property(columns)

    return instead(Template, "columns", make)


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
    Mutant("fused-heads-read-the-root", "fuse-heads: _LAST", "the root's state, whatever stands",
           "plain", "drafted-by-heads", _text("_LAST", "ReduceMax (path", "ReduceMin (Max (path"
                                              ", zero)"), HEADS),
    Mutant("fused-heads-read-the-row-before", "fuse-heads: _LAST", "the row before a path's last",
           "plain", "drafted-by-heads",
           _text("_LAST", "ReduceMax (path, axis_1)",
                 "Max (Sub (ReduceMax (path, axis_1), one), zero)"), HEADS),
    Mutant("fused-heads-a-depth-late", "fuse-heads: _TREE", "a node is the head's of its parent",
           "plain", "drafted-by-heads", _text("_TREE", "Sub (depths, one)", "Sub (depths, two)"),
           HEADS),
    Mutant("fused-heads-ranks-of-one-head", "fuse-heads: _TREE", "heads lie a candidate apart",
           "plain", "drafted-by-heads", _text("_TREE", "Mul (head, width)", "Mul (head, one)"),
           HEADS),
    Mutant("fused-heads-template-depths-off", "Template.columns", "depths are one too small",
           "plain", "fused", _template_off("template.depths", lambda c: np.maximum(c - 1, 0)),
           HEADS),
    Mutant("fused-heads-template-ranks-off", "Template.columns", "ranks are one too small",
           "plain", "fused", _template_off("template.ranks", lambda c: np.maximum(c - 1, 0)),
           HEADS),
    Mutant("fused-heads-commit-one-row-early", "fuse-verify: _commit", "a path's rows are one off",
           "plain", "fused", _called(fuse_verify, "KVCommit", _path_early), HEADS),
    Mutant("fused-block-features-of-the-rows", "fuse-block: _ACCEPTED", "features in row order",
           "plain", "drafted-by-block",
           _block("_ACCEPTED", "Max (path, zero)", "Add (Mul (path, zero), index)"), BLOCK),
    Mutant("fused-block-reads-the-row-before", "fuse-block: _ACCEPTED", "drafts behind a row less",
           "plain", "drafted-by-block",
           _block("_ACCEPTED", "rows = Sub (counted, one)",
                  "rows = Max (Sub (counted, two), zero)"), BLOCK),
    Mutant("fused-block-positions-off", "fuse-block: _DRAFTED", "a draft stands a position early",
           "plain", "drafted-by-block",
           _block("_DRAFTED", "Add (end, ahead)", "Sub (Add (end, ahead), one)"), BLOCK),
    Mutant("fused-block-sees-dead-rows", "fuse-block: _ACCEPTED", "a draft sees a row not accepted",
           "plain", "drafted-by-block",
           _block("_ACCEPTED", "Less (slot, Unsqueeze (end, axis_2))",
                  "LessOrEqual (slot, Unsqueeze (end, axis_2))"), BLOCK),
    Mutant("fused-block-blind-to-its-drafts", "fuse-block: _DRAFTED", "drafts do not see drafts",
           "plain", "drafted-by-block", instead(fuse_block, "_first", _last_alone), BLOCK),
    Mutant("fused-block-drafts-survive", "fuse-block: its caches", "a drafted row is committed",
           "plain", "drafted-by-block",
           instead(fuse_block.FuseBlock, "_bring_out", _drafts_survive), BLOCK),
    Mutant("fused-block-prompt-a-row-late", "runtimes: read_text", "features are a row late",
           "plain", "fused", instead(runtime_block, "read_text", _prompt_late), BLOCK),
]  # fmt: skip
