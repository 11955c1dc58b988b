"""Attention in any spelling, as one Attention node: 4D heads, native KV groups, mask by meaning."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from graftline.passes.canonical.attention.moves import Heads, trace_heads
from graftline.passes.canonical.attention.operator import bias_of_mask, unsupported
from graftline.passes.canonical.attention.probabilities import Probabilities
from graftline.passes.canonical.attention.scores import Scores
from graftline.passes.canonical.mask.kinds import Mask, RawMask
from graftline.passes.canonical.mask.mask import Bias, read_mask
from graftline.passes.canonical.mask.writer import MaskWriter
from graftline.passes.canonical.rotary.rotary import RotaryReader
from graftline.passes.canonical.rotary.rotation import RawTurn
from graftline.passes.canonical.shapes import Measures
from graftline.passes.grafts.masks import MASK_KEY
from graftline.passes.graph.emit import Emit
from graftline.passes.graph.meaning import label
from graftline.passes.graph.mismatch import Mismatch

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


@dataclass(frozen=True)
class Operands:
    """Query, key and value [B, heads, N, D] before they are turned, and what multiplies the scores.
    """

    query: ir.Value
    key: ir.Value
    value: ir.Value
    scale: float


@dataclass
class AttentionReader:
    """Rewrites all attentions of a graph; equal masks and rotary embeddings are looked at once."""

    graph: ir.Graph
    measures: Measures
    hidden: set[ir.Value]
    rotary: RotaryReader
    masks: MaskWriter
    read: dict[str, Mask | Mismatch] = field(default_factory=dict[str, "Mask | Mismatch"])
    mismatches: dict[ir.Node, Mismatch] = field(default_factory=dict[ir.Node, Mismatch])
    """The softmaxes and Attention nodes that were not rewritten, and why."""
    probabilities: Probabilities = field(init=False)

    def __post_init__(self) -> None:
        self.probabilities = Probabilities(self.measures, self.hidden)

    @property
    def positions(self) -> int:
        """How many positions the tables of all masks hold; 0 where there are none."""
        masks = [m for m in self.read.values() if isinstance(m, Mask)]
        return min((m.positions for m in masks if m.positions), default=0)

    def run(self) -> int:
        """Rewrite every attention and return how many there were."""
        done = 0
        for node in list(self.graph):
            if node.op_type == "Attention" and node.domain == "":
                found = self._fused(node)
            elif node.op_type == "Softmax" and node.outputs[0] in self.hidden:
                found = self._decomposed(node)
            else:
                continue
            why = found if isinstance(found, Mismatch) else self._write(found)
            if why is None:
                done += 1
            else:
                self.mismatches[node] = why
        # the pieces of a three-dimensional Attention are written around it
        self.graph.sort()
        return done

    def missed(self) -> list[Mismatch]:
        """Why nodes were not rewritten that nothing but an attention can be: Attention itself, and
        a softmax over a number for every pair of tokens."""
        return [
            why for node, why in self.mismatches.items()
            if node.op_type == "Attention"
            or (self.measures.dims(node.outputs[0]) or []).count("N") > 1
        ]  # fmt: skip

    def _write(self, found: Found) -> Mismatch | None:
        """One node for an attention; or why it is none."""
        operands, mask = self._operands(found), self._mask(found)
        if isinstance(operands, Mismatch):
            return operands
        if isinstance(mask, Mismatch):
            return mask
        queries = self.rotary.settle(operands.query, found.node)
        if isinstance(queries, Mismatch):
            return queries
        keys = self.rotary.settle(operands.key, found.node)
        if isinstance(keys, Mismatch):
            return keys
        inputs = [queries[0], keys[0], operands.value]
        held = self.masks.value(mask)
        if held is not None:
            inputs.append(held)
        emit = Emit(self.graph, "canonicalize", at=found.node)
        node = emit.node(
            "Attention", inputs, [""], scale=float(np.float32(operands.scale)),
            softcap=found.softcap or None, is_causal=self.masks.is_causal(mask),
        )  # fmt: skip
        node.name = f"attention.{len(self.graph)}.{found.out.name}"
        node.metadata_props[MASK_KEY] = mask.text()
        node.meta[RAW_KEY] = RawAttention(mask.raw, queries[1], keys[1])
        new = node.outputs[0]
        new.type, new.shape = found.out.type, found.out.shape
        ir.convenience.replace_all_uses_with(found.out, new, replace_graph_outputs=True)
        return None

    def _operands(self, found: Found) -> Operands | Mismatch:
        """Queries, keys and values, traced to their heads."""
        bases, scale = list[ir.Value](), found.scale
        sides = ((found.query, False), (found.key, found.transposed_key), (found.value, False))
        for place, (value, transposed) in enumerate(sides):
            heads = trace_heads(value, found.heads, transposed, self.hidden, self.measures)
            if isinstance(heads, Mismatch):
                return heads
            if place == 2 and abs(heads.scale - 1) > 1e-6:
                return Mismatch.at(found.node, "values are scaled before attention")
            scale *= heads.scale if place < 2 else 1.0
            bases.append(self._heads_first(heads, found.node))
        query, key, value = bases
        if self.measures.shape(key)[1] != self.measures.shape(value)[1]:
            return Mismatch.at(found.node, "keys and values have different numbers of heads")
        return Operands(query, key, value, scale)

    def _mask(self, found: Found) -> Mask | Mismatch:
        key, rows = found.bias_key, self.rotary.rows
        if key not in self.read:
            where = label(found.node)
            self.read[key] = read_mask(found.bias, self.measures, self.hidden, rows, where)
        return self.read[key]

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
        self.rotary.regions.follow(new.producer(), at)
        return new

    # Attention nodes

    def _fused(self, node: ir.Node) -> Found | Mismatch:
        said = unsupported(node, self.measures, self.hidden)
        if said is not None:
            return Mismatch.at(node, said)
        query, key, value, mask = [*node.inputs, None][:4]
        assert query is not None
        assert key is not None
        assert value is not None
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
            bias_of_mask(mask, causal, self.measures),
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

    def _decomposed(self, softmax: ir.Node) -> Found | Mismatch:
        scores = Scores(self.measures, self.hidden, softmax)
        why = scores.walk()
        if why is not None:
            return why
        end = self.probabilities.times_values(softmax, scores)
        if isinstance(end, Mismatch):
            return end
        out = self._four_dimensional(end.outputs[0])
        if isinstance(out, Mismatch):
            return out
        query, key, value = *scores.product.inputs[:2], end.inputs[1]
        assert query is not None
        assert key is not None
        assert value is not None
        heads = scores.heads(self.measures)
        return Found(
            end, out, query, key, value, heads, True, scores.scale, scores.softcap,
            scores.as_bias(), scores.key(),
        )  # fmt: skip

    def _four_dimensional(self, out: ir.Value) -> ir.Value | Mismatch:
        if len(self.measures.shape(out)) == 4:
            return out
        for node, _ in out.uses():
            if node.op_type == "Reshape" and len(self.measures.shape(node.outputs[0])) == 4:
                return node.outputs[0]
        return Mismatch.at(out, "heads of an attention are not restored")
