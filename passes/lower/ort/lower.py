"""lower-ort: from canonical ops to ONNX Runtime's fused ones.

Attention over a TensorScatter cache becomes GroupQueryAttention (rotary inside, packed query, key
and value where they come from one projection, past and present in one buffer); residual Add + norm
becomes Skip(Simplified)LayerNormalization; MatMul by a transposed weight becomes FusedMatMul, which
reads the checkpoint's own layout. Ports do not change. A host whose heads or caches do not fit
GroupQueryAttention keeps its Attention nodes, which ONNX Runtime runs too; so does one in which
rows see those behind them, over the slots in use.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir

from graftline.contrib_ops.operands import MICROSOFT
from graftline.errors import NotApplicable, nearest
from graftline.evaluate import Feed
from graftline.passes.anchors.anchors import with_role
from graftline.passes.grafts.masks import LATER, shift_biases
from graftline.passes.graph.emit import drop_unused
from graftline.passes.graph.operators import inline
from graftline.passes.graph.ports import lengths_of
from graftline.passes.laws.tables import tables
from graftline.passes.lower.ort.attention import (
    Lengths,
    cut_to_length,
    group_query_attention,
    query_type,
    round_biases,
)
from graftline.passes.lower.ort.fusions import fused_matmul, skip_norm
from graftline.passes.lower.ort.operands import Operands
from graftline.passes.lower.precision import PRECISIONS, cast_caches, narrow
from graftline.passes.pipeline.graft import Graft, Stage, WeightFreeLaw
from graftline.ports import GATE, read_ports

PROVIDERS = ("cpu", "cuda")


@dataclass(frozen=True)
class LowerOrt(Graft):
    """ONNX Runtime's fused ops: one attention op per layer, norms with their residual Add.

    `provider` is cpu or cuda, whose GroupQueryAttention has no fp32 kernel: at fp32 it keeps
    Attention over a TensorScatter cache. `dtype` is fp32, fp16 or bf16 (weights, activations and
    caches). Neutral: the caches in that type.
    """

    stage: ClassVar[Stage] = "lower"
    weight_free: ClassVar[tuple[WeightFreeLaw, ...]] = (tables,)

    provider: str = "cpu"
    dtype: str = "fp32"

    def requires(self, model: ir.Model) -> None:
        for name, value, known in (
            ("provider", self.provider, PROVIDERS), ("dtype", self.dtype, PRECISIONS),
        ):  # fmt: skip
            if value not in known:
                raise NotApplicable(f"lower-ort has no {name} '{value}'{nearest(value, known)}")
        states = [p.name for p in read_ports(model) if p.state == "running"]
        if states and self.provider != "cpu":
            raise NotApplicable(
                f"{self}: '{states[0]}' is a running state, which sessions on {self.provider} do "
                "not keep; use --target ort-cpu"
            )

    def apply(self, model: ir.Model) -> None:
        graph = model.graph
        model.opset_imports[MICROSOFT] = 1
        inline(model, self.name())
        attentions = with_role(graph, "attention")
        low = [n for n in attentions if self.dtype != "fp32" or query_type(n) != ir.DataType.FLOAT]
        shift_biases(graph, low, self.name())
        round_biases(graph, low, self.name())
        if self.dtype != "fp32":
            narrow(model, PRECISIONS[self.dtype], self.name())
        grouped = self.provider == "cpu" or self.dtype != "fp32"
        indices = lengths_of(model)
        operands = [Operands.of(node, indices) for node in attentions]
        steps: dict[ir.Value, Lengths] = {}
        for node in [n for n in attentions if LATER in n.metadata_props]:
            start = indices[_cache(node)]
            if start not in steps:
                steps[start] = Lengths(model, start, self.name())
            cut_to_length(graph, node, steps[start], self.name())
        if grouped and all(o is not None for o in operands):
            for found in operands:
                assert found is not None
                if found.start not in steps:
                    steps[found.start] = Lengths(model, found.start, self.name())
                group_query_attention(graph, found, steps[found.start], self.name())
        drop_unused(model)
        for node in list(graph):
            if node.op_type in ("RMSNormalization", "LayerNormalization"):
                skip_norm(graph, node, self.name())
        for node in list(graph):
            if node.op_type == "MatMul":
                fused_matmul(graph, node, self.name())
        drop_unused(model)

    def neutral(self, feed: Feed, after: ir.Model) -> Feed:
        return cast_caches(feed, after)

    def apart(self, before: ir.Model) -> Mapping[int, Hashable]:
        """A block behind a gated MLP reads no sum, which its first norm could be fused with."""
        gated = (n.metadata_props.get(GATE) for n in before.graph)
        return {int(block) + 1: "behind a gate" for block in gated if block is not None}


def _cache(node: ir.Node) -> ir.Value:
    """The cache that an attention's keys are written to."""
    keys = node.inputs[1]
    maker = keys.producer() if keys is not None else None
    cache = maker.inputs[0] if maker is not None else None
    assert cache is not None, "a mask over slots comes with caches"
    return cache
