"""reduce-logits: argmax, top-k, top-2 gap and entropy in the graph, so the host reads few numbers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from graftline.errors import LawBroken, NotApplicable
from graftline.evaluate import Feed
from graftline.passes.emit import Emit, new_output
from graftline.passes.graft import Evaluate, Graft, Law
from graftline.ports import Port, read_ports, write_ports


def reduced(graft: Graft, before: ir.Model, after: ir.Model, feed: Feed, evaluate: Evaluate) -> str:
    """The reductions are those of the host's logits, computed outside the graph."""
    got = evaluate(after, feed)
    logits = got["logits"].astype(np.float64)
    checked = ["argmax"]
    if not np.array_equal(got["argmax"], logits.argmax(-1)):
        raise LawBroken(graft.name(), "reduced", "argmax", "differs from the logits' own")
    if "topk_ids" in got:
        values = np.take_along_axis(logits, got["topk_ids"], axis=-1)
        best = -np.sort(-logits, axis=-1)[..., : values.shape[-1]]
        if not np.allclose(values, best, atol=1e-6):
            raise LawBroken(graft.name(), "reduced", "topk_ids", "are not the largest logits")
        checked += ["topk_ids", "topk_logits", "top_gap"]
        if not np.allclose(got["top_gap"], best[..., 0] - best[..., 1], atol=1e-5):
            raise LawBroken(graft.name(), "reduced", "top_gap", "is not best minus second best")
    if "entropy" in got:
        logp = logits - logits.max(-1, keepdims=True)
        logp = logp - np.log(np.exp(logp).sum(-1, keepdims=True))
        gap = float(np.max(np.abs(got["entropy"] + (np.exp(logp) * logp).sum(-1))))
        if not gap <= 1e-3:
            raise LawBroken(graft.name(), "reduced", "entropy", f"off by {gap:.3g}")
        checked.append("entropy")
    return f"{', '.join(checked)} agree with the logits"


@dataclass(frozen=True)
class ReduceLogits(Graft):
    """Adds outputs argmax [B, N]; with topk=k topk_ids, topk_logits [B, N, k] and top_gap [B, N];
    with entropy=true entropy [B, N] in nats. Adds no input, so it is neutral as it stands."""

    topk: int = 8
    entropy: bool = False
    laws: ClassVar[tuple[Law, ...]] = (reduced,)

    def requires(self, model: ir.Model) -> None:
        if self.topk == 1 or self.topk < 0:
            raise NotApplicable(f"reduce-logits takes topk=0 (none) or at least 2, not {self.topk}")
        if any(p.role == "argmax" for p in read_ports(model)):
            raise NotApplicable("the logits are reduced already", ["argmax"])

    def apply(self, model: ir.Model) -> None:
        graph = model.graph
        logits = next(v for v in graph.outputs if v.name == "logits")
        rows = next(p for p in read_ports(model) if p.role == "logits").shape[1]
        ports = list(read_ports(model))
        emit = Emit(graph, self.name())

        def publish(value: ir.Value, name: str, dtype: ir.DataType, *shape: str | int) -> None:
            new_output(graph, value, name, dtype, ["B", rows, *shape])
            ports.append(Port(name, name, "out", dtype.numpy().name, ("B", rows, *shape)))

        best = emit.op("ArgMax", [logits], axis=-1, keepdims=0)
        publish(best, "argmax", ir.DataType.INT64)
        if self.topk:
            count = emit.const("topk.k", [self.topk], np.int64)
            top = emit.node("TopK", [logits, count], ["", ""], axis=-1)
            ends = [emit.const(f"topk.{i}", [i], np.int64) for i in (0, 1, 2)]
            minus = emit.const("axes.-1", [-1], np.int64)
            first = emit.op("Slice", [top.outputs[0], ends[0], ends[1], minus])
            second = emit.op("Slice", [top.outputs[0], ends[1], ends[2], minus])
            gap = emit.op("Squeeze", [emit.op("Sub", [first, second]), minus])
            publish(top.outputs[1], "topk_ids", ir.DataType.INT64, self.topk)
            publish(top.outputs[0], "topk_logits", ir.DataType.FLOAT, self.topk)
            publish(gap, "top_gap", ir.DataType.FLOAT)
        if self.entropy:
            minus = emit.const("axes.-1", [-1], np.int64)
            logp = emit.op("LogSoftmax", [logits], axis=-1)
            weighted = emit.op("Mul", [emit.op("Exp", [logp]), logp])
            total = emit.op("Neg", [emit.op("ReduceSum", [weighted, minus], keepdims=0)])
            publish(total, "entropy", ir.DataType.FLOAT)
        write_ports(model, ports)
