"""tree-mask: open the causal mask as a port, so a step can score a whole tree of drafts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from graftline.errors import NotApplicable
from graftline.evaluate import Array, Feed
from graftline.law import Evidence
from graftline.passes.anchors import with_role
from graftline.passes.compare import Comparison
from graftline.passes.emit import Emit, drop_unused, find_input, new_input
from graftline.passes.graft import Evaluate, Graft, Law
from graftline.passes.masks import SlotMasks
from graftline.ports import Port, read_ports, write_ports
from graftline.tree import Tree


def causal_mask(write_index: Array, rows: int, slots: int) -> Array:
    """[B, 1, N, S] bool: row n sees slots 0 .. write_index + n."""
    seen = write_index[:, None] + np.arange(rows)
    return (np.arange(slots) <= seen[..., None])[:, None]


def branches(
    graft: Graft, before: ir.Model, after: ir.Model, feed: Feed, evaluate: Evaluate
) -> Evidence:
    """Every path of a tree scored in one pass equals the path fed to the host as a chain."""
    rows = feed["tokens"].shape[1]
    tree = Tree(feed["tokens"][0], trunk_and_branches(rows))
    fed = {k: v[:1] for k, v in feed.items()}
    fed["positions"] = tree.depth[None]
    slots = next(v.shape[2] for k, v in feed.items() if k.startswith("cache."))
    fed["mask"] = np.zeros((1, 1, rows, slots), np.bool_)
    fed["mask"][0, 0, :, :rows] = tree.mask
    scored = evaluate(after, fed)["logits"][0]
    comparison, worst = Comparison(graft.name(), "branches"), 0.0
    leaves = [n for n in range(rows) if not tree.children[n]]
    for leaf in leaves:
        path = list(tree.path_to(leaf))
        chain = {k: v[:1] for k, v in feed.items()}
        chain["tokens"] = tree.tokens[path][None]
        chain["positions"] = np.arange(len(path), dtype=np.int64)[None]
        alone = evaluate(before, chain)["logits"][0]
        worst = max(worst, comparison.output("logits", scored[path], alone))
    what = f"{len(leaves)} branches of a tree of {rows} nodes equal their chains"
    return Evidence(what, worst, comparison.limit)


BRANCHES = (-1, 0, 0, 1, 1, 2, 3, 5)
"""Parents of a small tree with four leaves of different depths."""


def trunk_and_branches(rows: int) -> Array:
    """Parents of `rows` nodes: a chain, long enough to leave every window, that ends in a tree."""
    trunk = max(0, rows - len(BRANCHES))
    ends = np.asarray(BRANCHES[: rows - trunk], np.int64)
    return np.concatenate([np.arange(-1, trunk - 1), trunk + ends])


@dataclass(frozen=True)
class TreeMask(Graft):
    """Adds the port mask [B, 1, N, S] bool: true where a new row may see a slot. Neutral: causal.

    Windows and ALiBi biases follow from it and from `positions`, which in a tree are depths.
    """

    laws: ClassVar[tuple[Law, ...]] = (branches,)

    def requires(self, model: ir.Model) -> None:
        if find_input(model.graph, "write_index") is None:
            raise NotApplicable("tree-mask needs a cache; put kv-cache before it")
        if find_input(model.graph, "mask") is not None:
            raise NotApplicable("the graph has a tree mask already", ["mask"])

    def apply(self, model: ir.Model) -> None:
        graph = model.graph
        inputs = [find_input(graph, n) for n in ("tokens", "positions", "write_index")]
        cache = next(v for v in graph.inputs if (v.name or "").startswith("cache."))
        tokens, positions, write_index = inputs
        assert tokens is not None
        assert positions is not None
        assert write_index is not None
        mask = new_input(graph, "mask", ir.DataType.BOOL, ["B", 1, "N", "S"])
        emit = Emit(graph, self.name(), graph[0])
        masks = SlotMasks(emit, tokens, positions, write_index, cache, mask)
        for node in with_role(graph, "attention"):
            node.replace_input_with(3, masks.of(node))
        write_ports(
            model, [*read_ports(model), Port("mask", "mask", "in", "bool", ("B", 1, "N", "S"))]
        )
        drop_unused(model)

    def neutral(self, feed: Feed, after: ir.Model) -> Feed:
        slots = next(v.shape[2] for k, v in feed.items() if k.startswith("cache."))
        return {**feed, "mask": causal_mask(feed["write_index"], feed["tokens"].shape[1], slots)}
