"""reduce-logits: argmax, top-k, top-2 gap and entropy in the graph, so the host reads few numbers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from graftline.errors import LawBroken, NotApplicable
from graftline.evaluate import Feed
from graftline.law import Evidence
from graftline.passes.graph.emit import Emit, new_output
from graftline.passes.graph.ports import output_of, roles_of
from graftline.passes.pipeline.graft import Evaluate, Graft, Law
from graftline.ports import Port, by_role, read_ports, write_ports

GROUP = 256
"""Logits in one group of the two-stage reductions."""
LOWEST = -1e30
"""Below every logit, and still a float32 when it is divided by a temperature."""


def reduced(
    graft: Graft, before: ir.Model, after: ir.Model, feed: Feed, evaluate: Evaluate
) -> Evidence:
    """The reductions are those of the host's logits, computed outside the graph."""
    outputs = evaluate(after, feed)
    got = {role: outputs[name] for role, name in roles_of(after).outputs.items()}
    logits = got["logits"].astype(np.float64)
    checked = ["argmax"]
    if not np.array_equal(got["argmax"], logits.argmax(-1)):
        raise LawBroken(graft.name(), "reduced", "argmax", "differs from the logits' own")
    if "topk_ids" in got:
        values = np.take_along_axis(logits, got["topk_ids"], axis=-1)
        best = -np.sort(-logits, axis=-1)[..., : values.shape[-1]]
        if not np.array_equal(values, best):
            raise LawBroken(graft.name(), "reduced", "topk_ids", "are not the largest logits")
        if not np.array_equal(got["topk_logits"], best.astype(got["topk_logits"].dtype)):
            raise LawBroken(graft.name(), "reduced", "topk_logits", "are not those of topk_ids")
        repeated = np.any(np.diff(np.sort(got["topk_ids"], axis=-1)) == 0)
        if repeated:
            raise LawBroken(graft.name(), "reduced", "topk_ids", "name one token twice")
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
    return Evidence(f"{', '.join(checked)} agree with the logits")


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
        if found := by_role(read_ports(model), "argmax"):
            raise NotApplicable("the logits are already reduced", [found[0].name])
        if not by_role(read_ports(model), "logits", "out"):
            raise NotApplicable("reduce-logits needs the output 'logits'; run canonicalize first")

    def apply(self, model: ir.Model) -> None:
        graph = model.graph
        logits = output_of(model, "logits")
        assert logits is not None
        rows = next(p for p in read_ports(model) if p.role == "logits").shape[1]
        ports = list(read_ports(model))
        emit = Emit(graph, self.name(), block="head")
        if logits.dtype != ir.DataType.FLOAT:
            logits = emit.op("Cast", [logits], to=ir.DataType.FLOAT)

        def publish(value: ir.Value, name: str, dtype: ir.DataType, *shape: str | int) -> None:
            new_output(graph, value, name, dtype, ["B", rows, *shape])
            dims, compare = ("B", rows, *shape), "equal" if dtype == ir.DataType.INT64 else "close"
            ports.append(Port(name, name, "out", dtype.numpy().name, dims, compare=compare))

        groups = Groups(emit, logits, ports)
        publish(groups.argmax(), "argmax", ir.DataType.INT64)
        if self.topk:
            values, ids = groups.topk(self.topk)
            ends = [emit.const(f"topk.{i}", [i], np.int64) for i in (0, 1, 2)]
            minus = emit.const("axes.-1", [-1], np.int64)
            first = emit.op("Slice", [values, ends[0], ends[1], minus])
            second = emit.op("Slice", [values, ends[1], ends[2], minus])
            gap = emit.op("Squeeze", [emit.op("Sub", [first, second]), minus])
            publish(ids, "topk_ids", ir.DataType.INT64, self.topk)
            publish(values, "topk_logits", ir.DataType.FLOAT, self.topk)
            publish(gap, "top_gap", ir.DataType.FLOAT)
        if self.entropy:
            minus = emit.const("axes.-1", [-1], np.int64)
            logp = emit.op("LogSoftmax", [logits], axis=-1)
            weighted = emit.op("Mul", [emit.op("Exp", [logp]), logp])
            total = emit.op("Neg", [emit.op("ReduceSum", [weighted, minus], keepdims=0)])
            publish(total, "entropy", ir.DataType.FLOAT)
        write_ports(model, ports)


class Groups:
    """Reductions over the vocabulary in two stages: the maxima of groups first, then few groups.

    The k largest logits lie in the k groups with the largest maxima, so TopK, which costs about
    20 ns an element on a CPU (1 ms for 49,152), looks at k groups instead of all of them.
    """

    def __init__(self, emit: Emit, logits: ir.Value, ports: list[Port]) -> None:
        self.emit = emit
        size = next(p for p in ports if p.role == "logits").shape[-1]
        assert isinstance(size, int)
        count = -(-size // GROUP)
        if count * GROUP != size:
            pads = emit.const("vocabulary.pads", [0, 0, 0, 0, 0, count * GROUP - size], np.int64)
            lowest = emit.const("lowest", LOWEST, np.float32)
            logits = emit.op("Pad", [logits, pads, lowest], mode="constant")
        shape = emit.const("vocabulary.groups", [0, 0, count, GROUP], np.int64)
        self.grouped = emit.op("Reshape", [logits, shape])
        self.minus = emit.const("axes.-1", [-1], np.int64)
        self.maxima = emit.op("ReduceMax", [self.grouped, self.minus], keepdims=0)
        self.width = emit.const("vocabulary.group", GROUP, np.int64)
        self.count = count

    def argmax(self) -> ir.Value:
        """[B, R]: the first index of the largest logit."""
        group = self.emit.op("ArgMax", [self.maxima], axis=-1, keepdims=1)
        inside = self.emit.op("ArgMax", [self.gather(self.grouped, group)], axis=-1, keepdims=0)
        index = self.emit.op("Add", [self.emit.op("Mul", [group, self.width]), inside])
        return self.emit.op("Squeeze", [index, self.minus])

    def topk(self, k: int) -> tuple[ir.Value, ir.Value]:
        """Values and ids [B, R, k] of the k largest logits, largest first."""
        emit, held = self.emit, min(k, self.count)
        groups = emit.const("topk.groups", [held], np.int64)
        group = emit.node("TopK", [self.maxima, groups], ["", ""], axis=-1).outputs[1]
        flat = emit.const("topk.flat", [0, 0, held * GROUP], np.int64)
        few = emit.op("Reshape", [self.gather(self.grouped, group), flat])
        top = emit.node("TopK", [few, emit.const("topk.k", [k], np.int64)], ["", ""], axis=-1)
        values, place = top.outputs
        owner = emit.op("Div", [place, self.width])
        chosen = emit.op("GatherElements", [group, owner], axis=2)
        start = emit.op("Mul", [chosen, self.width])
        return values, emit.op("Add", [start, emit.op("Mod", [place, self.width])])

    def gather(self, grouped: ir.Value, groups: ir.Value) -> ir.Value:
        """[B, R, k, GROUP] from [B, R, all groups, GROUP] and group numbers [B, R, k]."""
        index = self.emit.op("Unsqueeze", [groups, self.minus])
        return self.emit.op("GatherND", [grouped, index], batch_dims=2)
