"""Attention in any spelling, as one Attention node: 4D heads, native KV groups, mask by meaning."""

from __future__ import annotations

from dataclasses import dataclass, field

import ml_dtypes
import numpy as np
import onnx_ir as ir

from graftline.errors import NotApplicable
from graftline.evaluate import Array
from graftline.passes.canonical_lengths import SQUARE, constants_above, lengths_around
from graftline.passes.canonical_lift import Lift
from graftline.passes.canonical_mask import MASK_KEY, Bias, Mask, MaskWriter, RawMask, read_mask
from graftline.passes.canonical_moves import Heads, trace_heads
from graftline.passes.canonical_rotary import RawTurn, RotaryReader
from graftline.passes.canonical_shapes import SIZES, Measures
from graftline.passes.emit import Emit
from graftline.passes.meaning import World, label, label_value, scalar
from graftline.passes.seen import Seen, rounding

_PASSED = frozenset({"Cast", "Identity", "Reshape", "Dropout", "Max", "Clip", "Min"})
SCORES = (1.0, 30.0, 1e3, 3e4)
"""Sizes of the random scores on which a chain is checked, as far as their type holds them."""
_SPREAD = 16
_PROBED_SCORES = 64
_BETWEEN = 24
_READ = frozenset({"is_causal", "scale", "softcap", "q_num_heads", "kv_num_heads"})
"""Attributes of Attention that are read; others must say nothing."""
RAW_KEY = "graftline.raw_attention"


@dataclass(frozen=True)
class RawAttention:
    """What the raw graph adds between positions, and how it turns queries and keys; kept beside the
    new node, in memory only, for the law `masks`."""

    masks: tuple[RawMask, ...]
    query: RawTurn | None
    key: RawTurn | None


@dataclass
class Found:
    """One attention as the graph spells it."""

    node: ir.Node
    """Where the new node goes: the last node of the spelling."""
    out: ir.Value
    """[B, heads, N, D]."""
    query: ir.Value
    key: ir.Value
    value: ir.Value
    heads: int
    transposed_key: bool
    scale: float
    softcap: float
    bias: Bias
    bias_key: str


@dataclass
class AttentionReader:
    """Rewrites all attentions of a graph; equal masks and rotary embeddings are looked at once."""

    graph: ir.Graph
    measures: Measures
    hidden: set[ir.Value]
    rotary: RotaryReader
    masks: MaskWriter
    read: dict[str, Mask] = field(default_factory=dict[str, Mask])
    unchanged: set[str] = field(default_factory=set[str])
    """Ways from probabilities to values that were proven to change nothing."""

    @property
    def positions(self) -> int:
        """How many positions the tables of all masks hold; 0 where there are none."""
        return min((m.positions for m in self.read.values() if m.positions), default=0)

    def run(self) -> int:
        """Rewrite every attention and return how many there were."""
        done = 0
        for node in list(self.graph):
            found = None
            if node.op_type == "Attention" and node.domain == "":
                found = self._fused(node)
            elif node.op_type == "Softmax" and node.outputs[0] in self.hidden:
                found = self._decomposed(node)
            if found is not None:
                self._write(found)
                done += 1
        # the pieces of a three-dimensional Attention are written around it
        self.graph.sort()
        return done

    def _write(self, found: Found) -> None:
        where = label(found.node)
        q = trace_heads(found.query, found.heads, False, self.hidden, self.measures)
        k = trace_heads(found.key, found.heads, found.transposed_key, self.hidden, self.measures)
        v = trace_heads(found.value, found.heads, False, self.hidden, self.measures)
        bases = [self._heads_first(h, found.node) for h in (q, k, v)]
        if self.measures.shape(bases[1])[1] != self.measures.shape(bases[2])[1]:
            raise NotApplicable("keys and values have different numbers of heads", [where])
        if abs(v.scale - 1) > 1e-6:
            raise NotApplicable("values are scaled before attention", [where])
        if found.bias_key not in self.read:
            self.read[found.bias_key] = read_mask(
                found.bias, self.measures, self.rotary.rows, where
            )
        mask = self.read[found.bias_key]
        scale = found.scale * q.scale * k.scale
        query, query_turn = self.rotary.settle(bases[0], found.node)
        key, key_turn = self.rotary.settle(bases[1], found.node)
        inputs = [query, key, bases[2]]
        held = self.masks.value(mask)
        if held is not None:
            inputs.append(held)
        emit = Emit(self.graph, "canonicalize", at=found.node)
        node = emit.node(
            "Attention", inputs, [""], scale=float(np.float32(scale)),
            softcap=found.softcap or None, is_causal=self.masks.is_causal(mask),
        )  # fmt: skip
        node.name = f"attention.{len(self.graph)}.{found.out.name}"
        node.metadata_props[MASK_KEY] = mask.text()
        node.meta[RAW_KEY] = RawAttention(mask.raw, query_turn, key_turn)
        new = node.outputs[0]
        new.type, new.shape = found.out.type, found.out.shape
        ir.convenience.replace_all_uses_with(found.out, new, replace_graph_outputs=True)

    def _heads_first(self, heads: Heads, at: ir.Node) -> ir.Value:
        if not heads.rows_first:
            return heads.base
        new = Emit(self.graph, "canonicalize", at=at).op(
            "Transpose", [heads.base], perm=[0, 2, 1, 3]
        )
        new.type = heads.base.type
        for measure in self.measures.each:
            b, n, h, d = measure.of(heads.base) or (0, 0, 0, 0)
            measure.shapes[new] = (b, h, n, d)
        self.hidden.add(new)
        self.rotary.follow(new.producer(), at)
        return new

    # Attention nodes

    def _fused(self, node: ir.Node) -> Found:
        _refuse_attributes(node)
        inputs = list(node.inputs) + [None] * 7
        query, key, value, mask = inputs[:4]
        if query is None or key is None or value is None:
            raise NotApplicable("an Attention node lacks an input", [label(node)])
        if inputs[6] is not None:
            raise NotApplicable("Attention over a padded cache is not supported", [label(node)])
        for past in inputs[4:6]:
            if past is not None and 0 not in self.measures.shape(past):
                raise NotApplicable("an Attention node keeps its own cache", [label(node)])
        if mask is not None and mask in self.hidden:
            raise NotApplicable("the mask of an attention depends on activations", [label(node)])
        out = node.outputs[0]
        if len(self.measures.shape(query)) == 3:
            query, key, value, out = self._unmerge(node, query, key, value)
        shape = self.measures.shape(query)
        causal = bool(node.attributes.get_int("is_causal", 0))
        scale = node.attributes.get_float("scale", None)
        return Found(
            node, out, query, key, value, shape[1], False,
            float(scale) if scale is not None else shape[-1] ** -0.5,
            float(node.attributes.get_float("softcap", 0.0) or 0.0),
            _bias_of_mask(mask, causal, self.measures),
            f"{id(mask)}.{causal}.{shape[1]}",
        )  # fmt: skip

    def _unmerge(
        self, node: ir.Node, query: ir.Value, key: ir.Value, value: ir.Value
    ) -> tuple[ir.Value, ir.Value, ir.Value, ir.Value]:
        """Heads of a 3D Attention node, and a 4D value that its old output is made of again."""
        emit = Emit(self.graph, "canonicalize", at=node)
        split: list[ir.Value] = []
        for name, source in (("q", query), ("kv", key), ("kv", value)):
            count = int(node.attributes.get_int(f"{name}_num_heads", 0) or 0)
            size = self.measures.shape(source)[2] // max(count, 1)
            target = emit.const(f"shape.0_0_{count}_{size}", [0, 0, count, size], np.int64)
            rows = emit.op("Reshape", [source, target])
            heads = emit.op("Transpose", [rows], perm=[0, 2, 1, 3])
            for measure in self.measures.each:
                batch, length, _ = measure.of(source) or (0, 0, 0)
                measure.shapes[rows] = (batch, length, count, size)
                measure.shapes[heads] = (batch, count, length, size)
            for made in (rows, heads):
                made.type = source.type
                self.hidden.add(made)
            split.append(heads)
        after = Emit(self.graph, "canonicalize", at=node)
        # the heads of the output stand where the node stood; readers get them merged again
        out = after.op("Identity", [split[0]])
        rows = after.op("Transpose", [out], perm=[0, 2, 1, 3])
        width = self.measures.shape(node.outputs[0])[2]
        merged = after.op(
            "Reshape", [rows, after.const(f"shape.0_0_{width}", [0, 0, width], np.int64)]
        )
        for measure in self.measures.each:
            b, h, n, _ = measure.shapes[split[0]] or (0, 0, 0, 0)
            measure.shapes[out] = (b, h, n, width // max(h, 1))
        merged.type, merged.shape = node.outputs[0].type, node.outputs[0].shape
        ir.convenience.replace_all_uses_with(node.outputs[0], merged, replace_graph_outputs=True)
        return split[0], split[1], split[2], out

    # softmax(QK^T + bias) V

    def _decomposed(self, softmax: ir.Node) -> Found | None:
        scores = _Scores(self, softmax)
        if not scores.walk():
            return None
        product = scores.product
        query, key = product.inputs[0], product.inputs[1]
        if query is None or key is None:
            return None
        end = self._times_values(softmax, scores)
        value = end.inputs[1]
        if value is None:
            raise NotApplicable("attention without values", [label(end)])
        heads = scores.heads(self.measures)
        return Found(
            end, self._four_dimensional(end.outputs[0]), query, key, value, heads, True,
            scores.scale, scores.softcap, scores.as_bias(), scores.key(),
        )  # fmt: skip

    def _times_values(self, softmax: ir.Node, scores: _Scores) -> ir.Node:
        """The product with V that probabilities run into; what lies between changes nothing."""
        axis = int(softmax.attributes.get_int("axis", -1) or 0)
        rank = len(self.measures.shape(softmax.outputs[0]))
        if axis % rank != rank - 1:
            raise NotApplicable(
                f"softmax runs over axis {axis} of scores, not over the keys, their last axis",
                [label(softmax)],
            )
        end, between = self._between(softmax)
        if between:
            self._prove_unchanged(softmax, end, between, scores)
        return end

    def _between(self, softmax: ir.Node) -> tuple[ir.Node, list[ir.Node]]:
        """The product with V, and the nodes on the way from the probabilities to it."""
        inside, ends = dict[ir.Node, None](), dict[ir.Node, None]()
        todo = [softmax.outputs[0]]
        while todo:
            value = todo.pop()
            if value.is_graph_output():
                raise NotApplicable("attention probabilities are an output", [label(softmax)])
            for node, index in value.uses():
                if node.op_type == "MatMul" and index == 0:
                    ends[node] = None
                elif node not in inside:
                    inside[node] = None
                    todo.extend(node.outputs)
            if len(inside) > _BETWEEN:
                raise NotApplicable("attention probabilities do not meet values", [label(softmax)])
        if len(ends) != 1:
            raise NotApplicable("attention probabilities are read twice", [label(n) for n in ends])
        return next(iter(ends)), list(inside)

    def _prove_unchanged(
        self, softmax: ir.Node, end: ir.Node, between: list[ir.Node], scores: _Scores
    ) -> None:
        """Refuse what changes probabilities (a second mask, a clip): told by values around every
        constant above them."""
        key = f"{scores.key()}{[(n.op_type, [id(v) for v in self._given([n])]) for n in between]}"
        if key in self.unchanged:
            return
        self.unchanged.add(key)
        names = [label(n) for n in between]
        given = self._given(between)
        wide = max(self.measures.shape(softmax.outputs[0])[:-2], default=1)
        lengths = lengths_around(constants_above([*given, *scores.sources]))
        per_row = any("N" in (self.measures.dims(v) or ["N"]) for v in given)
        product, probabilities = scores.product.outputs[0], softmax.outputs[0]
        for n in lengths:
            if wide * n * n > SQUARE:
                if per_row:
                    raise NotApplicable(
                        f"what is done to attention probabilities cannot be looked at for {n} "
                        "positions", names,
                    )  # fmt: skip
                break
            world = self.measures.world(2, n)
            random = np.random.default_rng(n).standard_normal(scores.product_shape(2, n)) * 3
            world.known[product] = random.astype(_float(product))
            before, after = world.value(probabilities), world.value(_input(end, 0))
            gap = np.abs(after.reshape(before.shape).astype(np.float64) - before)
            if not gap.max() <= 8 * rounding(before.dtype):
                raise NotApplicable(
                    f"attention probabilities are changed after the softmax (masked again, clipped "
                    f"or rescaled; by {gap.max():.2g} at {n} positions)", names,
                )  # fmt: skip

    def _given(self, nodes: list[ir.Node]) -> list[ir.Value]:
        """The weight-free operands of nodes."""
        return [v for n in nodes for v in n.inputs if v is not None and v not in self.hidden]

    def _four_dimensional(self, out: ir.Value) -> ir.Value:
        if len(self.measures.shape(out)) == 4:
            return out
        for node, _ in out.uses():
            if node.op_type == "Reshape" and len(self.measures.shape(node.outputs[0])) == 4:
                return node.outputs[0]
        raise NotApplicable("heads of an attention are not restored", [label_value(out)])


def _bias_of_mask(mask: ir.Value | None, causal: bool, measures: Measures) -> Bias:
    """The bias of an Attention node: its mask input, and what it says itself."""

    def at(world: World, batch: int, length: int) -> Array:
        values = np.zeros((1, 1, length, length), np.float32)
        if mask is not None:
            held = world.value(mask)
            values = np.where(held, np.float32(0), -np.inf) if held.dtype == np.bool_ else held
        if causal:
            values = np.where(np.tril(np.ones((length, length), bool)), values, -np.inf)
        values = values.reshape((1,) * (4 - values.ndim) + values.shape)
        return np.broadcast_to(values, (*values.shape[:2], length, length))

    def lift(lifting: Lift) -> ir.Value:
        return lifting.attention_mask(mask, causal)

    shape = measures.shape(mask) if mask is not None else ()
    heads = shape[1] if len(shape) == 4 else 1
    return Bias(at, lift, [mask] if mask is not None else [], heads)


class _Scores:
    """The way from QK^T to softmax: scale, soft cap, and biases that depend on no activation."""

    def __init__(self, reader: AttentionReader, softmax: ir.Node) -> None:
        self.hidden, self.measures = reader.hidden, reader.measures
        self.softmax = softmax
        self.product: ir.Node = softmax
        self.chain: list[ir.Node] = []
        self.sources: list[ir.Value] = []
        self.scale, self.softcap = 1.0, 0.0

    def walk(self) -> bool:
        """Follow the scores up to their product; False when this softmax is no attention."""
        value = self.softmax.inputs[0]
        while value is not None:
            node = value.producer()
            if node is None:
                return False
            if node.op_type == "MatMul":
                self.product = node
                if not all(v in self.hidden for v in node.inputs):
                    return False
                break
            activations = [v for v in node.inputs if v is not None and v in self.hidden]
            if len(activations) != 1 or not self._passes(node, activations[0]):
                return False
            self.chain.append(node)
            self.sources.extend(v for v in node.inputs if v is not None and v not in self.hidden)
            value = activations[0]
        self._read_scalars()
        return value is not None

    def _passes(self, node: ir.Node, activation: ir.Value) -> bool:
        if node.op_type in ("Add", "Sub", "Where", "Tanh") or node.op_type in _PASSED:
            return node.op_type != "Sub" or node.inputs[0] is activation
        return node.op_type in ("Mul", "Div")

    def _read_scalars(self) -> None:
        """Scale before and after the soft cap, exactly as written, from the product upwards."""
        value = self.product.outputs[0]
        for node in reversed(self.chain):
            if node.op_type in ("Mul", "Div"):
                other = node.inputs[1] if node.inputs[0] is value else node.inputs[0]
                number = self._number(other, node)
                factor = number if node.op_type == "Mul" else 1.0 / number
                if self.softcap:
                    self.softcap *= factor
                else:
                    self.scale *= factor
            elif node.op_type == "Tanh":
                if self.softcap:
                    raise NotApplicable("scores are capped twice", [label(node)])
                self.softcap = 1.0
            value = node.outputs[0]
        if self.softcap:
            self.scale *= self.softcap

    def _number(self, value: ir.Value | None, node: ir.Node) -> float:
        number = scalar(value)
        if number is None and value is not None:
            array = self.measures.world(*SIZES[0]).value(value)
            number = float(array.reshape(-1)[0]) if array.size == 1 else None
        if number is None:
            raise NotApplicable("scores are scaled by more than one number", [label(node)])
        return number

    def heads(self, measures: Measures) -> int:
        """Query heads, from whichever scores have four dimensions."""
        for value in [self.softmax.outputs[0], self.product.outputs[0]]:
            shape = measures.shape(value)
            if len(shape) == 4:
                return shape[1]
        shape = measures.shape(self.product.outputs[0])
        return shape[0] // SIZES[0][0]

    def as_bias(self) -> Bias:
        """What is added to the capped scores: their way to the softmax, with zeros for them."""
        end = self.end

        def lift(lifting: Lift) -> ir.Value:
            rank = len(self.measures.shape(end))
            return lifting.value(end, ("bh", "q", "k") if rank == 3 else ("b", "h", "q", "k"))

        product = self.product.outputs[0]
        return Bias(self.bias, lift, self.sources, self.heads(self.measures), product)

    @property
    def end(self) -> ir.Value:
        """What the softmax reads."""
        value = self.softmax.inputs[0]
        if value is None:
            raise NotApplicable("softmax without input", [label(self.softmax)])
        return value

    def bias(self, world: World, batch: int, length: int) -> Array:
        """What is added to the capped scores, [B, heads, N, N]; checked on random scores, large
        ones among them."""
        product = self.product.outputs[0]
        shape, dtype = self.product_shape(batch, length), _float(product)
        zero = world.fork({**world.known, product: np.zeros(shape, dtype)}).value(self.end)
        seen = Seen.of(zero.reshape(-1, length, length)).allowed.reshape(zero.shape)
        rng = np.random.default_rng(length)
        largest = float(ml_dtypes.finfo(dtype).max) / _SPREAD
        sizes = [s for s in SCORES if s <= largest] if length <= _PROBED_SCORES else []
        for size in sizes:
            scores = (rng.standard_normal(shape) * size).astype(dtype)
            got = world.fork({**world.known, product: scores}).value(self.end).astype(np.float64)
            want = self._capped(scores.astype(np.float64)).reshape(got.shape) + zero
            limit = 8 * rounding(dtype) * max(1.0, float(np.abs(want[seen]).max(initial=0)))
            if not np.abs(got[seen] - want[seen]).max(initial=0.0) <= limit:
                raise NotApplicable(
                    f"scores are changed by more than scale, cap and bias (they differ at scores "
                    f"of about {size:g}): clipped scores cannot be served",
                    [label(n) for n in self.chain],
                )
        heads = self.heads(self.measures)
        return zero.reshape(batch, heads, length, length)

    def _capped(self, scores: Array) -> Array:
        scaled = scores * self.scale
        return self.softcap * np.tanh(scaled / self.softcap) if self.softcap else scaled

    def product_shape(self, batch: int, length: int) -> tuple[int, ...]:
        """[B, heads, N, N], or [B * heads, N, N], as the graph multiplies."""
        shape = self.measures.shape(self.product.outputs[0])
        if len(shape) == 4:
            return (batch, shape[1], length, length)
        return (batch * (shape[0] // SIZES[0][0]), length, length)

    def key(self) -> str:
        """Text that is equal for chains with the same bias."""
        rows = [
            f"{n.op_type}{[id(v) for v in n.inputs if v is not None and v not in self.hidden]}"
            for n in self.chain
        ]
        return f"{rows}.{self.heads(self.measures)}"


def _float(value: ir.Value) -> np.dtype[np.generic]:
    return (value.dtype or ir.DataType.FLOAT).numpy()


def _input(node: ir.Node, index: int) -> ir.Value:
    value = node.inputs[index]
    if value is None:
        raise NotApplicable("a node lacks its input", [label(node)])
    return value


def _refuse_attributes(node: ir.Node) -> None:
    """Refuse what an Attention node says that its canonical form cannot."""
    if any(v.uses() or v.is_graph_output() for v in node.outputs[3:]):
        raise NotApplicable("an Attention node gives out its scores", [label(node)])
    precision = node.attributes.get_int("softmax_precision", ir.DataType.FLOAT.value)
    if precision != ir.DataType.FLOAT.value:
        raise NotApplicable(
            f"softmax_precision {precision} is not supported: softmax is computed in fp32",
            [label(node)],
        )
    unread = set(node.attributes) - _READ - {"softmax_precision", "qk_matmul_output_mode"}
    if unread:
        raise NotApplicable(
            f"an Attention node has {', '.join(sorted(unread))}, which is not read", [label(node)]
        )
