"""select-rows: compute logits only for the rows asked for, so prefill skips the vocabulary matrix.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from graftline.errors import NotApplicable
from graftline.evaluate import Feed
from graftline.law import Evidence
from graftline.passes.anchors.anchors import with_role
from graftline.passes.graph.emit import Emit, new_input
from graftline.passes.graph.ports import output_of, roles_of
from graftline.passes.laws.compare import Comparison, activation_dtype
from graftline.passes.pipeline.graft import Evaluate, Graft, Law
from graftline.ports import Port, read_ports, write_ports


def subset(
    graft: Graft, before: ir.Model, after: ir.Model, feed: Feed, evaluate: Evaluate
) -> Evidence:
    """Asking for some rows gives exactly those rows of the host's logits."""
    made = roles_of(after)
    logits = made.outputs["logits"]
    whole = evaluate(before, feed)[logits]
    rows = np.asarray([[whole.shape[1] - 1, 0]] * len(whole), np.int64)
    some = evaluate(after, feed | made.feed(rows=rows))[logits]
    expected = np.take_along_axis(whole, rows[..., None], axis=1)
    comparison = Comparison(graft.name(), "subset", activation_dtype(after))
    gap = comparison.output(logits, some, expected)
    what = f"2 rows of {whole.shape[1]} asked for are the same logits"
    return Evidence(what, gap, comparison.limit)


@dataclass(frozen=True)
class SelectRows(Graft):
    """Adds the port rows [B, R] int64: the new rows whose logits are wanted. Neutral: all of them.
    """

    laws: ClassVar[tuple[Law, ...]] = (subset,)

    def requires(self, model: ir.Model) -> None:
        if not with_role(model.graph, "lm_head"):
            raise NotApplicable("select-rows needs a stamped lm_head; run anchors first")

    def apply(self, model: ir.Model) -> None:
        graph = model.graph
        head = with_role(graph, "lm_head")[0]
        hidden = head.inputs[0]
        assert hidden is not None
        rows = new_input(graph, "rows", ir.DataType.INT64, ["B", "R"])
        emit = Emit(graph, self.name(), head)
        index = emit.op("Unsqueeze", [rows, emit.const("axes.2", [2], np.int64)])
        picked = emit.op("GatherND", [hidden, index], "selected_rows", batch_dims=1)
        head.replace_input_with(0, picked)
        if (logits := output_of(model, "logits")) is not None:
            logits.shape = ir.Shape(["B", "R", read_vocabulary(model)])
        ports = [
            replace(p, shape=("B", "R", *p.shape[2:]))
            if p.role == "logits"
            else p
            for p in read_ports(model)
        ]
        write_ports(model, [*ports, Port("rows", "rows", "in", "int64", ("B", "R"))])

    def neutral(self, feed: Feed, after: ir.Model) -> Feed:
        roles = roles_of(after)
        batch, count = feed[roles.inputs["tokens"]].shape
        return feed | roles.feed(rows=np.tile(np.arange(count, dtype=np.int64), (batch, 1)))


def read_vocabulary(model: ir.Model) -> int | str:
    """Size of the last axis of the logits, as the port says."""
    port = next(p for p in read_ports(model) if p.role == "logits")
    return port.shape[-1]
