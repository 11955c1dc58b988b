"""Caches, both ends of the model, what is made of the logits, and the fused step."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import onnx_ir as ir

from faults.graphs import (
    attentions,
    constant,
    nodes,
    of_layers,
    op,
    rewired,
    weight,
)  # fmt: skip
from faults.mutant import Apply, Edit, Mutant, Touched, after, instead
from graftline.passes import GRAFTS, draws, fuse_draft, fuse_verify, tree_inputs
from graftline.passes.anchors import block_outputs, with_role

CANONICALIZE, KV, TREE, TAP, SELECT, REDUCE, CUT, LOWER, VERIFY, DRAFT = (
    GRAFTS[n] for n in (
        "canonicalize", "kv-cache", "tree-mask", "tap", "select-rows", "reduce-logits",
        "cut-depth", "lower-ort", "fuse-verify", "fuse-draft",
    )
)  # fmt: skip
TAPS = {"passes": "kv-cache | tree-mask | tap{layers=1+norm} | reduce-logits"}
CHAIN = {"passes": "kv-cache | select-rows | reduce-logits"}
ENTROPY = {"passes": "kv-cache | select-rows | reduce-logits{topk=4,entropy=true}"}
FUSED = {"recipe": "token-recycling", "step": "fused"}
CUTS = {"draft": "int8", "draft_depths": (3,)}


# caches


def _scatters(model: ir.Model, layers: Iterable[int] | None, which: int) -> list[ir.Node]:
    found: list[ir.Node] = []
    for node in of_layers(attentions(model), layers):
        value = node.inputs[which]
        maker = value.producer() if value is not None else None
        if maker is not None and maker.op_type == "TensorScatter":
            found.append(maker)
    return found


def _slot_shifted(which: int, layers: Iterable[int] | None) -> Edit:
    def edit(model: ir.Model) -> int:
        done = 0
        for node in _scatters(model, layers, which):
            later = op(model, node, "Add", [node.inputs[2], constant(model, 1, np.int64)])
            done += rewired(node, 2, later)
        return done

    return edit


def _caches_swapped(layers: Iterable[int]) -> Edit:
    """Attention reads written keys as values and written values as keys."""

    def edit(model: ir.Model) -> int:
        done = 0
        for node in of_layers(attentions(model), layers):
            key, value = node.inputs[1:3]
            done += rewired(node, 1, value) + rewired(node, 2, key)  # type: ignore[arg-type]
        return done

    return edit


def _cache_of_another_layer(source: int, target: int, which: Iterable[int]) -> Edit:
    """A layer reads the cache that another has written."""

    def edit(model: ir.Model) -> int:
        found = attentions(model)
        if max(source, target) >= len(found):
            return 0
        return sum(rewired(found[target], w, found[source].inputs[w]) for w in which)  # type: ignore[arg-type]

    return edit


def _past_of_another_layer(source: int, target: int) -> Edit:
    """A layer's fresh keys are written into another layer's past."""

    def edit(model: ir.Model) -> int:
        if target >= len(attentions(model)):
            return 0
        (one,), (other,) = (_scatters(model, [i], 1) for i in (source, target))
        return rewired(other, 0, one.inputs[0])  # type: ignore[arg-type]

    return edit


def _past_lengths(model: ir.Model) -> int:
    """GroupQueryAttention is told of one row less than there is."""
    done = 0
    for node in nodes(model, "GroupQueryAttention"):
        one = constant(model, 1, np.int32)
        done += rewired(node, 5, op(model, node, "Sub", [node.inputs[5], one]))
    return done


def _past_order(model: ir.Model) -> int:
    """A lowered layer takes another layer's cache."""
    found = nodes(model, "GroupQueryAttention")
    if len(found) < 4:
        return 0
    return rewired(found[3], 3, found[2].inputs[3])  # type: ignore[arg-type]


# ends


def _head(model: ir.Model) -> ir.Node:
    found = with_role(model.graph, "lm_head")
    if found:
        return found[0]
    value = model.graph.outputs[0]
    while True:
        maker = value.producer()
        assert maker is not None
        if maker.op_type in ("MatMul", "Gemm"):
            return maker
        value = next(v for v in maker.inputs if v is not None and v.const_value is None)


def _head_weight(change: Callable[[Any], Any]) -> Edit:
    def edit(model: ir.Model) -> int:
        return weight(model, _head(model), 1, change)

    return edit


def _head_unturned(model: ir.Model) -> int:
    """A square head is multiplied by as it lies."""
    return weight(model, _head(model), 1, lambda w: np.ascontiguousarray(w.T))


def _last_op_gone(*op_types: str) -> Edit:
    """What comes behind the head is left out."""

    def edit(model: ir.Model) -> int:
        done, order = 0, list(model.graph)
        for node in order[order.index(_head(model)) + 1 :]:
            if node.op_type in op_types:
                source = next(v for v in node.inputs if v is not None and v.const_value is None)
                source.type, source.shape = node.outputs[0].type, node.outputs[0].shape
                node.outputs[0].replace_all_uses_with(source, replace_graph_outputs=True)
                done += 1
        if done:
            logits = model.graph.outputs[0]
            for value in (v for n in model.graph for v in n.outputs):
                if value.name == "logits" and value is not logits:
                    value.name = "logits.full"
            logits.name = "logits"
        return done

    return edit


def _embedding(model: ir.Model) -> ir.Node:
    tokens = next(v for v in model.graph.inputs if v.name == "tokens")
    return next(n for n in tokens.consumers() if n.op_type == "Gather")


def _embedding_shifted(model: ir.Model) -> int:
    """Every token has the next one's row; the last has its own."""
    return weight(model, _embedding(model), 0, lambda w: np.concatenate([w[1:], w[-1:]]))


def _ids_cut(model: ir.Model) -> int:
    """Ids go through 8 bits, as larger ones through 32."""
    return weight(model, _embedding(model), 0, lambda w: w[np.arange(len(w)) % 256])


def _learned_shifted(model: ir.Model) -> int:
    """Learned positions start one row later."""
    positions = next(v for v in model.graph.inputs if v.name == "positions")
    node = next(n for n in positions.consumers() if n.op_type in ("Gather", "Add"))
    at = 1 if node.op_type == "Gather" else list(node.inputs).index(positions)
    later = op(model, node, "Add", [positions, constant(model, 1, np.int64)])
    return rewired(node, at, later)


# taps, rows and reductions


def _output(model: ir.Model, name: str) -> ir.Value:
    return next(v for v in model.graph.outputs if v.name == name)


def _published(model: ir.Model, name: str, change: Callable[[ir.Node, ir.Value], ir.Value]) -> int:
    """An output is made of what was to be it; nobody else sees the difference."""
    old = _output(model, name)
    at = model.graph.node(-1) if old.producer() is None else None
    marker = at or list(model.graph)[-1]
    end = op(model, marker, "Identity", [old])
    model.graph.remove(end.producer())  # type: ignore[arg-type]
    model.graph.insert_after(list(model.graph)[-1], end.producer())  # type: ignore[arg-type]
    maker = end.producer()
    assert maker is not None
    maker.replace_input_with(0, change(maker, old))
    end.type, end.shape = old.type, old.shape
    place = list(model.graph.outputs).index(old)
    model.graph.outputs[place] = end
    old.name = f"{name}.right"
    end.name = name
    return 1


def _wrong(name: str, op_type: str, *constants: tuple[Any, Any], **attributes: Any) -> Edit:
    def edit(model: ir.Model) -> int:
        def change(maker: ir.Node, old: ir.Value) -> ir.Value:
            more = [constant(model, *pair) for pair in constants]
            return op(model, maker, op_type, [old, *more], **attributes)

        return _published(model, name, change)

    return edit


def _top_gap(model: ir.Model) -> int:
    """Best minus third best."""

    def change(maker: ir.Node, old: ir.Value) -> ir.Value:
        top = _output(model, "topk_logits")
        first, third = (
            op(model, maker, "Gather", [top, constant(model, i, np.int64)], axis=-1) for i in (0, 2)
        )
        return op(model, maker, "Sub", [first, third])

    return _published(model, "top_gap", change)


def _unsorted(model: ir.Model) -> int:
    """The second and third best change places, ids and logits alike."""
    size = int(_output(model, "topk_ids").shape[2])  # type: ignore[index, arg-type]
    order = [0, 2, 1, *range(3, size)]
    swaps = [_wrong(n, "Gather", (order, np.int64), axis=-1) for n in ("topk_ids", "topk_logits")]
    return sum(swap(model) for swap in swaps)


def _logits_unsorted(model: ir.Model) -> int:
    """The logits, but not the ids."""
    size = int(_output(model, "topk_ids").shape[2])  # type: ignore[index, arg-type]
    return _wrong("topk_logits", "Gather", ([1, 0, *range(2, size)], np.int64), axis=-1)(model)


def _rows_shifted(model: ir.Model) -> int:
    """Rows asked for are counted from one; the last stays the last."""
    rows = next(v for v in model.graph.inputs if v.name == "rows")
    tokens = next(v for v in model.graph.inputs if v.name == "tokens")
    node = rows.consumers()[0]
    last = op(model, node, "Shape", [tokens], start=1, end=2)
    one = constant(model, 1, np.int64)
    next_ = op(model, node, "Add", [rows, one])
    return rewired(node, 0, op(model, node, "Mod", [next_, last]))


def _tap(source: Callable[[ir.Model], ir.Value | None], name: str) -> Edit:
    def edit(model: ir.Model) -> int:
        maker = _output(model, name).producer()
        assert maker is not None
        new = source(model)
        return rewired(maker, 0, new) if new is not None else 0

    return edit


def _before_norm(model: ir.Model) -> ir.Value | None:
    return with_role(model.graph, "final_norm")[-1].inputs[0]


def _cut_short(model: ir.Model) -> int:
    """The head reads the stream one block early."""
    stream = block_outputs(model.graph)
    norm = with_role(model.graph, "final_norm")[0]
    return rewired(norm, 0, stream[-2]) if len(stream) > 1 else 0


# the fused step


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


def _path_late(model: ir.Model, emit: Any, values: list[ir.Value]) -> list[ir.Value]:
    """The rows of an accepted path are taken one row later; the last where there is none."""
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


def _turned(real: Any, touched: Touched) -> Any:
    """Rows and columns of the ancestors change places: a node sees its descendants."""

    def reach(self: Any, index: ir.Value) -> ir.Value:
        touched.count += 1
        made: ir.Value = self.emit.op("Transpose", [real(self, index)], perm=[0, 2, 1])
        return made

    return reach


def _one_too_many(model: ir.Model, emit: Any, values: list[ir.Value]) -> list[ir.Value]:
    return _plus(2, 1)(model, emit, values)


ENDS = [
    Mutant("key-written-late", "kv-cache: KvCache._scatter", "keys are written one slot late",
           "plain", "neutral", after(KV, _slot_shifted(1, None)), CHAIN),
    Mutant("value-written-late", "kv-cache: KvCache._scatter", "values are written one slot late",
           "narrow", "neutral", after(KV, _slot_shifted(2, None)), CHAIN),
    Mutant("value-written-late-in-block-3", "kv-cache: KvCache._scatter",
           "values of block 3 are written one slot late",
           "narrow", "whole", after(KV, _slot_shifted(2, [3])), CHAIN),
    Mutant("key-and-value-caches-swapped", "kv-cache", "keys are read as values",
           "plain", "neutral", after(KV, _caches_swapped([0])), CHAIN),
    Mutant("cache-of-another-layer", "kv-cache", "block 1 attends over block 0's keys",
           "plain", "neutral", after(KV, _cache_of_another_layer(0, 1, [1])), CHAIN),
    Mutant("cache-of-another-layer-in-block-3", "kv-cache", "block 3 attends over block 2's keys",
           "plain", "whole", after(KV, _cache_of_another_layer(2, 3, [1])), CHAIN),
    Mutant("past-of-another-layer", "kv-cache", "block 1 goes on from block 0's past keys",
           "plain", "chunked", after(KV, _past_of_another_layer(0, 1)), CHAIN),
    Mutant("past-length-short", "lower-ort: _Lengths", "seqlens_k is one too small",
           "plain", "neutral", after(LOWER, _past_lengths), CHAIN),
    Mutant("past-of-another-layer-lowered", "lower-ort", "block 3 takes block 2's past keys",
           "plain", "whole", after(LOWER, _past_order), CHAIN),
    Mutant("head-zeroed", "canonicalize: own_head_weight", "the lm_head is zero",
           "llama", "neutral", after(CANONICALIZE, _head_weight(np.zeros_like))),
    Mutant("head-zeroed-lowered", "lower-ort: _fused_matmul", "the lm_head is zero",
           "plain", "neutral", after(LOWER, _head_weight(np.zeros_like))),
    Mutant("head-rows-shifted", "canonicalize: own_head_weight", "the lm_head is one row off",
           "llama", "neutral",
           after(CANONICALIZE, _head_weight(lambda w: np.roll(w, 1, axis=0)))),
    Mutant("head-of-other-rows", "canonicalize: own_head_weight", "two rows of the head swapped",
           "llama", "neutral",
           after(CANONICALIZE, _head_weight(lambda w: w[[*range(690), *range(699, 689, -1)]]))),
    Mutant("head-columns-permuted", "canonicalize", "the head reads the stream backwards",
           "llama", "neutral", after(CANONICALIZE, _head_weight(lambda w: w[:, ::-1].copy()))),
    Mutant("tied-head-unturned", "canonicalize: _separate", "a square tied head is not turned",
           "square", "neutral", after(CANONICALIZE, _head_unturned)),
    Mutant("logits-scale-dropped", "canonicalize: open_head", "the logits are not scaled",
           "granite", "neutral", after(CANONICALIZE, _last_op_gone("Mul", "Div"))),
    Mutant("logits-softcap-dropped", "canonicalize: open_head", "the logits are not capped",
           "gemma2", "neutral", after(CANONICALIZE, _last_op_gone("Tanh"))),
    Mutant("embedding-row-shifted", "canonicalize", "every token has the next one's row",
           "llama", "neutral", after(CANONICALIZE, _embedding_shifted)),
    Mutant("ids-cut-short", "canonicalize: enter", "ids go through a type too small for them",
           "llama", "neutral", after(CANONICALIZE, _ids_cut)),
    Mutant("learned-positions-shifted", "canonicalize: _learned", "positions start one row later",
           "gpt2", "neutral", after(CANONICALIZE, _learned_shifted)),
    Mutant("tap-of-another-layer", "tap", "hidden.1 is the stream after block 0",
           "plain", "tapped",
           after(TAP, _tap(lambda m: block_outputs(m.graph)[0], "hidden.1")), TAPS),
    Mutant("tap-before-norm", "tap", "hidden.norm is the stream before the final norm",
           "plain", "tapped", after(TAP, _tap(_before_norm, "hidden.norm")), TAPS),
    Mutant("tap-after-norm", "tap", "hidden.1 is the final norm's output",
           "plain", "tapped",
           after(TAP, _tap(lambda m: with_role(m.graph, "final_norm")[0].outputs[0], "hidden.1")),
           TAPS),
    Mutant("tap-lowered", "lower-ort: _skip_norm", "hidden.1 is half of a fused norm's sum",
           "plain", "neutral", after(LOWER, _wrong("hidden.1", "Mul", (0.5, np.float32))), TAPS),
    Mutant("rows-shifted", "select-rows", "the row after the one asked for is given",
           "plain", "neutral", after(SELECT, _rows_shifted), CHAIN),
    Mutant("argmax-of-the-next-group", "reduce-logits: Groups.argmax", "256 too many",
           "plain", "reduced", after(REDUCE, _wrong("argmax", "Add", (256, np.int64))), CHAIN),
    Mutant("topk-ids-of-another-group", "reduce-logits: Groups.topk", "256 too few",
           "plain", "reduced", after(REDUCE, _wrong("topk_ids", "Mod", (256, np.int64))), CHAIN),
    Mutant("topk-unsorted", "reduce-logits: Groups.topk", "second and third best change places",
           "plain", "reduced", after(REDUCE, _unsorted), CHAIN),
    Mutant("topk-logits-unsorted", "reduce-logits: Groups.topk",
           "best and second logit change places, their ids do not",
           "plain", "reduced", after(REDUCE, _logits_unsorted), CHAIN),
    Mutant("top-gap-to-the-third", "reduce-logits", "top_gap is best minus third best",
           "plain", "reduced", after(REDUCE, _top_gap), CHAIN),
    Mutant("entropy-in-bits", "reduce-logits", "entropy is in bits, not nats",
           "plain", "reduced",
           after(REDUCE, _wrong("entropy", "Mul", (1 / np.log(2), np.float32))), ENTROPY),
    Mutant("argmax-lowered", "lower-ort", "argmax is one too many in the lowered graph",
           "plain", "neutral", after(LOWER, _wrong("argmax", "Add", (1, np.int64))), CHAIN),
    Mutant("topk-logits-lowered", "lower-ort", "the lowered topk_logits are 1 % too large",
           "plain", "neutral",
           after(LOWER, _wrong("topk_logits", "Mul", (1.01, np.float32))), CHAIN),
    Mutant("cut-one-block-short", "cut-depth", "the head reads the stream one block early",
           "plain", "prefix", after(CUT, _cut_short), CUTS),
    Mutant("accepts-one-too-many", "fuse-verify", "count is one too many",
           "plain", "fused", _called(fuse_verify, "TreeVerify", _one_too_many, "outputs"), FUSED),
    Mutant("commits-one-row-early", "fuse-verify: _commit", "a path's rows are one row off",
           "plain", "fused", _called(fuse_verify, "KVCommit", _path_late), FUSED),
    Mutant("ancestors-turned", "tree-inputs: TreeInputs._reach", "a node sees its descendants",
           "plain", "fused", instead(tree_inputs.TreeInputs, "_reach", _turned), FUSED),
    Mutant("draft-rows-shifted", "fuse-draft", "a token's candidates are another's",
           "plain", "drafted", _called(fuse_draft, "DraftTree", _table_rolled), FUSED),
    Mutant("random-stream-of-the-next-turn", "draws: uniforms", "draws are numbered from one",
           "plain", "fused", _called(draws, "Uniforms", _plus(1, 1)), FUSED),
    Mutant("random-stream-of-another-seed", "draws: uniforms", "the seed is another",
           "plain", "fused", _called(draws, "Uniforms", _plus(0, 1)), FUSED),
]  # fmt: skip
