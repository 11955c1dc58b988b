"""features: what a draft head reads of its target becomes an input of its graph."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from graftline.errors import NotApplicable
from graftline.evaluate import Array, Feed
from graftline.law import Evidence
from graftline.passes.graph.emit import drop_unused, new_input
from graftline.passes.graph.ports import input_of, roles_of
from graftline.passes.graph.weights import tensor_of
from graftline.passes.laws.compare import Comparison, activation_dtype
from graftline.passes.pipeline.graft import Evaluate, Graft, Law
from graftline.ports import FEATURES, Port, read_ports, write_ports

TABLE = "graftline.features"
"""In a model's `meta`: the table that the input stands in the place of, for feeds of laws."""


def opened(
    graft: Graft, before: ir.Model, after: ir.Model, feed: Feed, evaluate: Evaluate
) -> Evidence:
    """Features of any numbers give what the host gives with those numbers in its table."""
    host, roles = before.clone(), roles_of(after)
    logits = roles.outputs["logits"]
    old = host.graph.initializers[FEATURES]
    table = np.random.default_rng(11).standard_normal(tensor_of(old).shape.numpy())
    old.const_value = ir.tensor(table.astype(np.float32), name=FEATURES)
    expected = evaluate(host, feed)[logits]
    tokens = feed[roles.inputs["tokens"]]
    got = evaluate(after, {**graft.neutral(feed, after), FEATURES: looked_up(table, tokens)})
    comparison = Comparison(graft.name(), "opened", activation_dtype(after))
    gap = comparison.output(logits, got[logits], expected)
    return Evidence("other features are read as another table is", gap, comparison.limit)


def looked_up(table: Array, tokens: Array) -> Array:
    """Features [B, N, H] of ids [B, N], as the exported head looks them up."""
    return table[tokens % len(table)].astype(np.float32)


@dataclass(frozen=True)
class Features(Graft):
    """Adds the port features [B, N, H] of a draft head that reads its target's hidden states: row n
    has the feature of the position before its token. Neutral: the table that the exported head has
    in their place.
    """

    laws: ClassVar[tuple[Law, ...]] = (opened,)

    def requires(self, model: ir.Model) -> None:
        if _lookup(model) is None:
            raise NotApplicable(
                "features is for draft heads that read their target's hidden states, and this "
                "graph has no table of features"
            )

    def apply(self, model: ir.Model) -> None:
        node = _lookup(model)
        assert node is not None
        table = node.inputs[0]
        assert table is not None
        model.meta[TABLE] = tensor_of(table).numpy()
        width = model.meta[TABLE].shape[1]
        shape = ("B", "N", width)
        node.outputs[0].replace_all_uses_with(
            new_input(model.graph, FEATURES, ir.DataType.FLOAT, shape)
        )
        drop_unused(model)
        write_ports(
            model, [*read_ports(model), Port(FEATURES, FEATURES, "in", "float32", shape)]
        )

    def neutral(self, feed: Feed, after: ir.Model) -> Feed:
        tokens = feed[roles_of(after).inputs["tokens"]]
        return {**feed, FEATURES: looked_up(after.meta[TABLE], tokens)}


def _lookup(model: ir.Model) -> ir.Node | None:
    """The Gather that looks features up by token ids; None where there is none."""
    table, tokens = model.graph.initializers.get(FEATURES), input_of(model, "tokens")
    readers = table.consumers() if table is not None else ()
    if len(readers) != 1 or readers[0].op_type != "Gather" or tokens is None:
        return None
    index = readers[0].inputs[1]
    maker = index.producer() if index is not None else None
    return readers[0] if maker is not None and maker.inputs[0] is tokens else None
