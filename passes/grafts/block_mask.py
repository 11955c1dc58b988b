"""block-mask: rows of one step may see those behind them, as a block of masks sees itself whole."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from graftline.evaluate import Feed
from graftline.law import Evidence
from graftline.passes.anchors.anchors import with_role
from graftline.passes.grafts.kv_cache import carried_caches
from graftline.passes.grafts.masks import LATER
from graftline.passes.grafts.tree_mask import TreeMask, branches
from graftline.passes.graph.ports import roles_of
from graftline.passes.laws.compare import Comparison, activation_dtype
from graftline.passes.pipeline.graft import Evaluate, Graft, Law

BLOCK = 5
"""Rows of the block that the law looks at."""


def any_order(
    graft: Graft, before: ir.Model, after: ir.Model, feed: Feed, evaluate: Evaluate
) -> Evidence:
    """Rows that all see one another score the same in either order, each at its own position; and
    not what they score as a chain."""
    roles = roles_of(after)
    logits, rows = roles.outputs["logits"], [roles.inputs[r] for r in ("tokens", "positions")]
    batch, count = feed[rows[0]].shape
    size = min(BLOCK, count - 1)
    past = {**feed, **{name: feed[name][:, :-size] for name in rows}}
    filled = evaluate(after, graft.neutral(past, after))
    block = {**feed, **{name: feed[name][:, -size:] for name in rows}}
    block |= roles.feed(write_index=np.full(batch, count - size, np.int64))
    caches = carried_caches(after, filled)
    block = graft.neutral(block | caches, after) | caches
    chain = evaluate(after, block)[logits]
    mask = block[roles.inputs["mask"]].copy()
    mask[..., :count] = True
    whole = block | roles.feed(mask=mask)
    turned = whole | {name: whole[name][:, ::-1].copy() for name in rows}
    found, other = (evaluate(after, one)[logits] for one in (whole, turned))
    comparison = Comparison(graft.name(), "any-order", activation_dtype(after))
    gap = comparison.output(logits, other[:, ::-1], found)
    if comparison.measure(logits, found[:, 0], chain[:, 0]) <= comparison.limit:
        raise comparison.broken(logits, "a block scores as a chain does")
    what = f"{size} rows that see one another are the same in either order"
    return Evidence(what, gap, comparison.limit)


@dataclass(frozen=True)
class BlockMask(TreeMask):
    """Adds the port mask as tree-mask does, for steps whose rows also see those behind them. Such
    attention is not GroupQueryAttention's, which is causal. Neutral: causal."""

    laws: ClassVar[tuple[Law, ...]] = (branches, any_order)

    def apply(self, model: ir.Model) -> None:
        super().apply(model)
        for node in with_role(model.graph, "attention"):
            node.metadata_props[LATER] = "yes"
