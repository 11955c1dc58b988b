"""Inside the blocks: norms, rotary embeddings, heads, projections, activations, the residual."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import onnx_ir as ir

from faults.graphs import (
    above,
    attentions,
    attribute,
    bypass,
    constant,
    nodes,
    numbers,
    of_layers,
    op,
    rewired,
    weight,
)  # fmt: skip
from faults.mutant import Edit, Mutant, after
from graftline.passes import GRAFTS

CANONICALIZE, KV, TREE, PACK, LOWER = (
    GRAFTS[n] for n in ("canonicalize", "kv-cache", "tree-mask", "pack-projections", "lower-ort")
)
NORMS = (
    "RMSNormalization", "LayerNormalization", "SkipSimplifiedLayerNormalization",
    "SkipLayerNormalization", "SimplifiedLayerNormalization",
)  # fmt: skip


def _epsilon(place: int, *op_types: str) -> Edit:
    """One norm's epsilon is 1e-6, not 1e-5."""

    def edit(model: ir.Model) -> int:
        found = nodes(model, *(op_types or NORMS))
        return attribute(found[place], "epsilon", 1e-4) if len(found) > place else 0

    return edit


def _no_plus_one(model: ir.Model) -> int:
    """A scale stored as its difference from one is taken for the scale."""
    return numbers(model, [n.inputs[1] for n in nodes(model, *NORMS)], 1, 0)


def _norm_gone(place: int, *op_types: str) -> Edit:
    def edit(model: ir.Model) -> int:
        found = nodes(model, *(op_types or NORMS))
        return bypass(found[place]) if len(found) > abs(place) else 0

    return edit


def _norm_input(place: int, what: int, change: Callable[[Any], Any]) -> Edit:
    """The scale (1) or bias (2) of one norm."""

    def edit(model: ir.Model) -> int:
        found = nodes(model, *NORMS)
        if len(found) <= place or len(found[place].inputs) <= what:
            return 0
        return weight(model, found[place], what, change)

    return edit


def _residual_after_norm(layer: int) -> Edit:
    """The stream goes on from the normalised rows, not from the rows."""

    def edit(model: ir.Model) -> int:
        found = attentions(model)
        if layer >= len(found):
            return 0
        norm = next(n for n in above(found[layer].inputs[0]) if n.op_type in NORMS)
        source = norm.inputs[0]
        assert source is not None
        add = next(n for n in source.consumers() if n.op_type == "Add")
        return rewired(add, list(add.inputs).index(source), norm.outputs[0])

    return edit


def _sum_forgets_skip(model: ir.Model) -> int:
    """The sum that a fused norm hands on lacks what was added."""
    found = nodes(model, "SkipSimplifiedLayerNormalization", "SkipLayerNormalization")
    node = next(n for n in found if n.outputs[3].uses())
    source = node.inputs[0]
    assert source is not None
    node.outputs[3].replace_all_uses_with(source)
    return 1


# rotary embeddings


def _rotaries(model: ir.Model, layers: Iterable[int] | None, which: Iterable[int]) -> list[ir.Node]:
    """RotaryEmbedding nodes of queries (0) and keys (1)."""
    found: list[ir.Node] = []
    for node in of_layers(attentions(model), layers):
        for operand in which:
            value = node.inputs[operand]
            maker = value.producer() if value is not None else None
            if maker is not None and maker.op_type == "TensorScatter":
                value = maker.inputs[1]
                maker = value.producer() if value is not None else None
            if maker is not None and maker.op_type == "RotaryEmbedding":
                found.append(maker)
            elif node.op_type == "GroupQueryAttention" and operand == 0:
                found.append(node)
    return found


def _positions(which: int, shift: int, layers: Iterable[int] | None = None) -> Edit:
    """Queries (0) or keys (1) are turned as if they stood `shift` positions later."""

    def edit(model: ir.Model) -> int:
        done = 0
        for node in _rotaries(model, layers, [which]):
            if node.op_type == "RotaryEmbedding":
                later = op(
                    model, node, "Add", [node.inputs[3], constant(model, shift, np.int64)]
                )
                done += rewired(node, 3, later)
        return done

    return edit


def _tables(change: Callable[[Any, Any], tuple[Any, Any]], layers: Iterable[int] | None = None,
            which: Iterable[int] = (0, 1)) -> Edit:  # fmt: skip
    """The cosines and sines [P, R/2] become change(cosines, sines)."""

    def edit(model: ir.Model) -> int:
        done, made = 0, {}
        for node in _rotaries(model, layers, which):
            start = 1 if node.op_type == "RotaryEmbedding" else 7
            pair = tuple(node.inputs[start : start + 2])
            if len(pair) < 2 or any(v is None or v.const_value is None for v in pair):
                continue
            if pair not in made:
                arrays = [v.const_value.numpy() for v in pair]  # type: ignore[union-attr]
                new = change(*arrays)
                made[pair] = [constant(model, a, arrays[0].dtype) for a in new]
            for place, value in enumerate(made[pair]):
                done += rewired(node, start + place, value)
        return done

    return edit


def _late(first: int) -> Callable[[Any, Any], tuple[Any, Any]]:
    """From that position on every row is the next one's."""

    def change(cos: Any, sin: Any) -> tuple[Any, Any]:
        rows = np.arange(len(cos))
        at = np.minimum(np.where(rows >= first, rows + 1, rows), len(cos) - 1)
        return cos[at], sin[at]

    return change


def _other_theta(cos: Any, sin: Any) -> tuple[Any, Any]:
    """Frequencies of a base 4 times as large."""
    width = cos.shape[1]
    angle = np.arctan2(sin[1], cos[1]).astype(np.float64)
    slower = angle * 4.0 ** (-np.arange(width) / width)
    all_ = np.arange(len(cos))[:, None] * slower
    return np.cos(all_), np.sin(all_)


def _flag(node: ir.Node) -> int:
    name = "interleaved" if node.op_type == "RotaryEmbedding" else "rotary_interleaved"
    was = node.attributes.get_int(name, 0)
    node.attributes[name] = ir.AttrInt64(name, 1 - (was or 0))
    return 1


def _interleaved(model: ir.Model) -> int:
    return sum(_flag(n) for n in _rotaries(model, None, [0, 1]))


def _half_dim(model: ir.Model) -> int:
    """Half as many of a head's numbers are turned."""
    done = _tables(lambda cos, sin: (cos[:, : cos.shape[1] // 2], sin[:, : sin.shape[1] // 2]))(
        model
    )
    for node in _rotaries(model, None, [0, 1]):
        table = node.inputs[1]
        assert table is not None
        assert table.shape is not None
        node.attributes["rotary_embedding_dim"] = ir.AttrInt64(
            "rotary_embedding_dim",
            2 * int(table.shape[1]),  # type: ignore[arg-type]
        )
    return done


def _unturned_keys(model: ir.Model) -> int:
    return sum(bypass(n) for n in _rotaries(model, None, [1]))


def _tables_of_layer(source: int, target: int) -> Edit:
    """One layer turns by the tables of another."""

    def edit(model: ir.Model) -> int:
        done = 0
        if len(attentions(model)) <= max(source, target):
            return 0
        for which in (0, 1):
            (one,), (other,) = (_rotaries(model, [i], [which]) for i in (source, target))
            for place in (1, 2):
                done += other.inputs[place] is not one.inputs[place]
                rewired(other, place, one.inputs[place])  # type: ignore[arg-type]
        return done

    return edit


def _by_row_order(layers: Iterable[int]) -> Edit:
    """Rows of a tree are turned by where they are written, not by their depth."""

    def edit(model: ir.Model) -> int:
        from faults.masks import row_order

        done = 0
        for node in _rotaries(model, layers, [0, 1]):
            done += rewired(node, 3, row_order(model, model.graph[0]))
        return done

    return edit


# heads


def _heads(operands: Iterable[int], order: list[int], layers: Iterable[int] | None = None) -> Edit:
    """Heads [B, heads, N, D] of these operands of Attention in another order; 9 is its output."""

    def edit(model: ir.Model) -> int:
        done = 0
        for node in of_layers(attentions(model), layers):
            if node.op_type != "Attention":
                continue
            for operand in operands:
                at = constant(model, order, np.int64)
                if operand == 9:
                    users = list(node.outputs[0].uses())
                    new = op(model, users[0][0], "Gather", [node.outputs[0], at], axis=1)
                    new.type, new.shape = node.outputs[0].type, node.outputs[0].shape
                    for user, place in users:
                        user.replace_input_with(place, new)
                    done += 1
                else:
                    new = op(model, node, "Gather", [node.inputs[operand], at], axis=1)
                    done += rewired(node, operand, new)
        return done

    return edit


def _repeated_in_turn(model: ir.Model) -> int:
    """Query heads 0, 2 read KV head 0 and 1, 3 read 1: the heads interleave, and do not block."""
    order = [0, 2, 1, 3]
    return _heads([0, 9], order)(model)


def _scaled(factor: float, layers: Iterable[int] | None = None) -> Edit:
    def edit(model: ir.Model) -> int:
        done = 0
        for node in of_layers(attentions(model), layers):
            was = node.attributes.get_float("scale", 0.0) or 16**-0.5
            node.attributes["scale"] = ir.AttrFloat32("scale", was * factor)
            done += 1
        return done

    return edit


def _softcap_gone(model: ir.Model) -> int:
    return sum(bool(n.attributes.pop("softcap", None)) for n in attentions(model))


# projections and activations


def _matmuls(model: ir.Model, layer: int) -> list[ir.Node]:
    """Products by a weight after the attention of a layer, up to the next one."""
    order = list(model.graph)
    places = [order.index(n) for n in attentions(model)] + [len(order)]
    if layer >= len(places) - 1:
        return []
    part = order[places[layer] : places[layer + 1]]
    return [n for n in part if n.op_type in ("MatMul", "FusedMatMul", "Gemm")]


def _gate_and_up(model: ir.Model) -> int:
    """The activation goes over `up`, not over `gate`."""
    _, gate, up = _matmuls(model, 0)[:3]
    done = _exchanged(gate.outputs[0], up.outputs[0])
    model.graph.sort()
    return done


def _exchanged(one: ir.Value, other: ir.Value) -> int:
    """Whoever reads one value reads the other."""
    uses = [(u, p, other) for u, p in one.uses()] + [(u, p, one) for u, p in other.uses()]
    for user, place, new in uses:
        user.replace_input_with(place, new)
    return len(uses)


def _swapped_parts(parts: int, first: int, second: int) -> Edit:
    """Two parts of a packed projection change places."""

    def edit(model: ir.Model) -> int:
        splits = [n for n in nodes(model, "Split") if len(n.outputs) == parts]
        return sum(_exchanged(n.outputs[first], n.outputs[second]) for n in splits)

    return edit


def _biases(model: ir.Model, where: Callable[[ir.Node], bool] = lambda n: True) -> list[ir.Node]:
    """Adds of a constant vector to a product."""
    found: list[ir.Node] = []
    for node in nodes(model, "Add"):
        vectors = [v for v in node.inputs if v is not None and v.const_value is not None]
        others = [v.producer() for v in node.inputs if v is not None and v.const_value is None]
        product = any(m is not None and m.op_type in ("MatMul", "Gemm") for m in others)
        if vectors and product and len(vectors[0].const_value.shape) == 1 and where(node):  # type: ignore[union-attr]
            found.append(node)
    return found


def _bias_dropped(model: ir.Model) -> int:
    node = _biases(model)[0]
    return bypass(node, int(node.inputs[0].const_value is not None))  # type: ignore[union-attr]


def _bias_doubled(model: ir.Model) -> int:
    node = _biases(model)[0]
    return weight(model, node, int(node.inputs[1].const_value is not None), lambda b: 2 * b)  # type: ignore[union-attr]


def _packed_bias_gone(model: ir.Model) -> int:
    done = 0
    for node in nodes(model, "Add"):
        for place, value in enumerate(node.inputs):
            if value is not None and (value.name or "").endswith(".bias") and "packed" in (
                value.name or ""
            ):
                done += weight(model, node, place, np.zeros_like)
    return done


def _tanh_as_erf(model: ir.Model) -> int:
    """Gelu by its error function in place of the tanh approximation, or the other way round."""
    done = 0
    for node in nodes(model, "Gelu"):
        was = node.attributes.get_string("approximate", "none")
        node.attributes["approximate"] = ir.AttrString(
            "approximate", "none" if was == "tanh" else "tanh"
        )
        done += 1
    return done


def _quick_gelu(model: ir.Model) -> int:
    """x * sigmoid(1.702 x) in place of Gelu."""
    done = 0
    for node in nodes(model, "Gelu"):
        x = node.inputs[0]
        steep = op(model, node, "Mul", [x, constant(model, 1.702, np.float32)])
        made = op(model, node, "Mul", [x, op(model, node, "Sigmoid", [steep])])
        made.type, made.shape = node.outputs[0].type, node.outputs[0].shape
        node.outputs[0].replace_all_uses_with(made)
        done += 1
    return done


def _linear_gate(model: ir.Model) -> int:
    """Sigmoid replaced by its hard approximation."""
    node = nodes(model, "Sigmoid", "Swish")[0]
    hard = op(model, node, "HardSigmoid", [node.inputs[0]], alpha=0.25)
    if node.op_type == "Swish":
        hard = op(model, node, "Mul", [node.inputs[0], hard])
    hard.type, hard.shape = node.outputs[0].type, node.outputs[0].shape
    node.outputs[0].replace_all_uses_with(hard)
    return 1


def _number(old: float, new: float) -> Edit:
    """One constant of the stream (a residual or embedding multiplier) is another."""

    def edit(model: ir.Model) -> int:
        done = 0
        for node in nodes(model, "Mul", "Div"):
            for place, value in enumerate(node.inputs):
                tensor = value.const_value if value is not None else None
                if tensor is not None and tensor.size == 1:
                    array = tensor.numpy()
                    if np.isclose(float(array.reshape(())), old, rtol=1e-3):
                        full = np.full(array.shape, new)
                        done += rewired(node, place, constant(model, full, array.dtype))
        return done

    return edit


INNER = [
    Mutant("epsilon-of-one-norm", "canonicalize: fuse_norms", "epsilon 1e-4 for 1e-5 in block 0",
           "llama", "neutral", after(CANONICALIZE, _epsilon(0))),
    Mutant("epsilon-of-a-later-norm", "canonicalize: fuse_norms", "epsilon 1e-4 in block 3",
           "llama", "whole", after(CANONICALIZE, _epsilon(6))),
    Mutant("epsilon-of-final-norm", "canonicalize: fuse_norms", "epsilon 1e-4 in the final norm",
           "llama", "neutral", after(CANONICALIZE, _epsilon(10))),
    Mutant("epsilon-lowered", "lower-ort: _skip_norm", "epsilon 1e-4 in a fused norm",
           "llama", "neutral", after(LOWER, _epsilon(0, "SkipSimplifiedLayerNormalization"))),
    Mutant("epsilon-lowered-in-block-3", "lower-ort: _skip_norm", "epsilon 1e-4 in a fused norm",
           "llama", "whole", after(LOWER, _epsilon(6, "SkipSimplifiedLayerNormalization"))),
    Mutant("norm-bias-dropped", "canonicalize: _take_affine", "a LayerNorm loses its bias",
           "bloom", "neutral", after(CANONICALIZE, _norm_input(1, 2, np.zeros_like))),
    Mutant("norm-scale-dropped", "canonicalize: _take_affine", "a norm loses its scale",
           "llama", "neutral", after(CANONICALIZE, _norm_input(1, 1, np.ones_like))),
    Mutant("norm-plus-one-dropped", "canonicalize: _plus_one", "gemma's 1 + w is read as w",
           "gemma2", "neutral", after(CANONICALIZE, _no_plus_one)),
    Mutant("query-norm-dropped", "canonicalize", "queries are not normalised",
           "gemma3", "neutral", after(CANONICALIZE, _norm_gone(1))),
    Mutant("post-norm-dropped", "canonicalize", "what attention adds is not normalised",
           "gemma2", "neutral", after(CANONICALIZE, _norm_gone(1))),
    Mutant("final-norm-dropped", "canonicalize", "the head reads the stream itself",
           "llama", "neutral", after(CANONICALIZE, _norm_gone(10))),
    Mutant("residual-after-norm", "canonicalize", "the stream goes on from its norm",
           "plain", "neutral", after(CANONICALIZE, _residual_after_norm(0))),
    Mutant("residual-after-norm-in-block-3", "canonicalize", "the stream goes on from its norm",
           "llama", "whole", after(CANONICALIZE, _residual_after_norm(3))),
    Mutant("fused-sum-forgets-skip", "lower-ort: _skip_norm", "a fused norm hands on half its sum",
           "plain", "neutral", after(LOWER, _sum_forgets_skip)),
    Mutant("rotary-query-late", "canonicalize: RotaryReader", "queries turn one position later",
           "llama", "neutral", after(CANONICALIZE, _positions(0, 1))),
    Mutant("rotary-key-late-in-block-3", "canonicalize: RotaryReader",
           "keys of block 3 turn one position later",
           "llama", "whole", after(CANONICALIZE, _positions(1, 1, [3]))),
    Mutant("rotary-late-over-cache", "kv-cache", "keys turn one position later once cached",
           "plain", "neutral", after(KV, _positions(1, 1))),
    Mutant("rotary-late-from-30", "canonicalize: RotaryReader._tables",
           "from position 30 on tables are off by one",
           "llama", "rotary", after(CANONICALIZE, _tables(_late(30)))),
    Mutant("rotary-late-from-200", "canonicalize: RotaryReader._tables",
           "from position 200 of 256 on tables are off by one",
           "llama", "rotary", after(CANONICALIZE, _tables(_late(200)))),
    Mutant("rotary-late-from-30-lowered", "lower-ort: _group_query_attention",
           "from position 30 on tables are off by one",
           "plain", "neutral", after(LOWER, _tables(_late(30)))),
    Mutant("rotary-interleaved", "canonicalize: _pairing", "neighbours are paired, not halves",
           "llama", "neutral", after(CANONICALIZE, _interleaved)),
    Mutant("rotary-interleaved-lowered", "lower-ort", "neighbours are paired, not halves",
           "plain", "neutral", after(LOWER, _interleaved)),
    Mutant("rotary-dim-halved", "canonicalize: _pairing", "half as much of a head is turned",
           "llama", "neutral", after(CANONICALIZE, _half_dim)),
    Mutant("rotary-sin-negated", "canonicalize: RotaryReader._tables", "heads turn the other way",
           "llama", "neutral", after(CANONICALIZE, _tables(lambda c, s: (c, -s), None, [0]))),
    Mutant("rotary-cos-and-sin-swapped", "canonicalize: RotaryReader._tables",
           "queries take sines for cosines",
           "llama", "neutral", after(CANONICALIZE, _tables(lambda c, s: (s, c), None, [0]))),
    Mutant("rotary-other-theta", "canonicalize: RotaryReader._tables", "a base 4 times as large",
           "llama", "neutral", after(CANONICALIZE, _tables(_other_theta))),
    Mutant("rotary-theta-of-another-layer", "canonicalize: RotaryReader.tables",
           "a global layer turns by the tables of a local one",
           "gemma3", "neutral", after(CANONICALIZE, _tables_of_layer(0, 1))),
    Mutant("rotary-keys-unturned", "canonicalize: RotaryReader.settle", "keys are not turned",
           "llama", "neutral", after(CANONICALIZE, _unturned_keys)),
    Mutant("rotary-by-row-order-in-blocks-2-3", "tree-mask",
           "in two later blocks a tree's rows turn by their order, not by their depth",
           "plain", "whole", after(TREE, _by_row_order([2, 3]))),
    Mutant("heads-permuted", "canonicalize: trace_heads", "query heads are in reverse",
           "plain", "neutral", after(CANONICALIZE, _heads([0], [3, 2, 1, 0]))),
    Mutant("heads-permuted-in-block-3", "canonicalize: trace_heads", "query heads are in reverse",
           "llama", "whole", after(CANONICALIZE, _heads([0], [3, 2, 1, 0], [3]))),
    Mutant("value-heads-permuted", "canonicalize: trace_heads", "value heads are in reverse",
           "llama", "neutral", after(CANONICALIZE, _heads([2], [1, 0]))),
    Mutant("kv-heads-interleaved", "canonicalize: trace_heads",
           "KV heads are repeated in turn, not in blocks",
           "llama", "neutral", after(CANONICALIZE, _repeated_in_turn)),
    Mutant("scale-off", "canonicalize: _Scores", "the scores' scale is off by the root of two",
           "llama", "neutral", after(CANONICALIZE, _scaled(2**-0.5))),
    Mutant("scale-off-lowered", "lower-ort", "the scores' scale is off by the root of two",
           "plain", "neutral", after(LOWER, _scaled(2**-0.5))),
    Mutant("scale-off-in-block-4", "lower-ort", "the scores' scale is off by the root of two",
           "llama", "whole", after(LOWER, _scaled(2**-0.5, [4]))),
    Mutant("softcap-dropped", "canonicalize: _Scores", "the scores are not capped",
           "gemma2", "neutral", after(CANONICALIZE, _softcap_gone)),
    Mutant("softcap-dropped-lowered", "lower-ort", "the scores are not capped",
           "gemma2", "neutral", after(LOWER, _softcap_gone)),
    Mutant("gate-and-up-swapped", "canonicalize", "the activation goes over the other projection",
           "llama", "neutral", after(CANONICALIZE, _gate_and_up)),
    Mutant("gate-and-up-packed-swapped", "pack-projections: _pack", "gate and up change places",
           "plain", "neutral", after(PACK, _swapped_parts(2, 0, 1)),
           {"passes": "kv-cache | select-rows | reduce-logits | pack-projections{mlp=true}"}),
    Mutant("query-and-key-packed-swapped", "pack-projections: _pack",
           "query and key change places", "qwen2", "neutral",
           after(PACK, _swapped_parts(3, 0, 1))),
    Mutant("packed-bias-dropped", "pack-projections: _bias", "a packed projection has no bias",
           "qwen2", "neutral", after(PACK, _packed_bias_gone)),
    Mutant("bias-dropped", "canonicalize", "a projection loses its bias",
           "qwen2", "neutral", after(CANONICALIZE, _bias_dropped)),
    Mutant("bias-doubled", "canonicalize", "a projection's bias is added twice",
           "gpt2", "neutral", after(CANONICALIZE, _bias_doubled)),
    Mutant("gelu-of-another-kind", "canonicalize", "Gelu by erf for its tanh approximation",
           "gemma2", "neutral", after(CANONICALIZE, _tanh_as_erf)),
    Mutant("gelu-by-sigmoid", "canonicalize", "x sigmoid(1.702 x) in place of Gelu",
           "gemma2", "neutral", after(CANONICALIZE, _quick_gelu)),
    Mutant("sigmoid-made-hard", "canonicalize", "HardSigmoid in place of Sigmoid",
           "llama", "neutral", after(CANONICALIZE, _linear_gate)),
    Mutant("residual-multiplier-dropped", "canonicalize", "what a block adds is not scaled",
           "granite", "neutral", after(CANONICALIZE, _number(0.7, 1.0))),
    Mutant("embedding-scale-dropped", "canonicalize", "the embedding is not scaled",
           "gemma2", "neutral", after(CANONICALIZE, _number(8.0, 1.0))),
]  # fmt: skip
