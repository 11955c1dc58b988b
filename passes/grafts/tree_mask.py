"""tree-mask: open the causal mask as a port, so a step can score a whole tree of drafts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from graftline.errors import NotApplicable
from graftline.evaluate import Array, Feed
from graftline.head_notes import TransferNote
from graftline.law import Evidence
from graftline.owners import TARGET
from graftline.passes.anchors.anchors import with_role
from graftline.passes.grafts.kv_cache import carried_caches
from graftline.passes.grafts.masks import SlotMasks
from graftline.passes.graph.emit import Emit, drop_unused, new_input
from graftline.passes.graph.ports import cache_of, input_of, port_of, roles_of
from graftline.passes.laws.compare import Comparison, activation_dtype
from graftline.passes.laws.masks import masks
from graftline.passes.pipeline.graft import SHARED, Evaluate, Graft, Law, WeightFreeLaw
from graftline.ports import FEATURES, STREAM, Port, read_ports, slot_ports, write_ports
from graftline.roles import Roles
from graftline.tree import Tree


def causal_mask(write_index: Array, rows: int, slots: int) -> Array:
    """[B, 1, N, S] bool: row n sees slots 0 .. write_index + n."""
    seen = write_index[:, None] + np.arange(rows)
    return (np.arange(slots) <= seen[..., None])[:, None]


def branches(
    graft: Graft, before: ir.Model, after: ir.Model, feed: Feed, evaluate: Evaluate
) -> Evidence:
    """Every branch of a tree, after a past, equals the past and the branch as a chain: different
    trees after pasts of different lengths, one beside the other."""
    roles, made = roles_of(before), roles_of(after)
    step, logits = Grove.of(feed, made), roles.outputs["logits"]
    tokens, trees, lengths = feed[roles.inputs["tokens"]], step.trees, step.lengths
    filled = evaluate(after, graft.neutral(step.past(feed), after))
    fed = graft.neutral(step.rows(feed), after) | carried_caches(after, filled)
    fed |= step.ports(fed[made.inputs["mask"]].shape[-1])
    scored = evaluate(after, fed)[logits]
    batch, nodes = len(trees), len(trees[0].tokens)
    comparison, worst, count = Comparison(graft.name(), "branches", activation_dtype(after)), 0.0, 0
    for n, tree in enumerate(trees):
        for leaf in [m for m in range(nodes) if not tree.children[m]]:
            path = list(tree.path_to(leaf))
            chain = np.concatenate([tokens[n, : lengths[n]], tree.tokens[path]])
            alone = evaluate(before, _chain(feed, chain, roles))[logits][0, lengths[n] :]
            worst = max(worst, comparison.output(logits, scored[n, path], alone))
            count += 1
    what = f"{count} branches of {batch} trees of {nodes} nodes, after {lengths.tolist()} rows"
    return Evidence(f"{what}, equal their chains", worst, comparison.limit)


TREES = (
    np.asarray([-1, 0, 0, 1, 1, 2, 3, 5], np.int64), np.asarray([-1, 0, 1, 0, 2, 3, 3, 4], np.int64)
)  # fmt: skip
"""Parents of small trees whose leaves have different depths, not in the order of their rows."""


@dataclass(frozen=True)
class Grove:
    """A different tree for each sequence of a batch, after pasts of different lengths."""

    trees: tuple[Tree, ...]
    lengths: Array
    """[B] int64."""
    longest: int
    roles: Roles
    """The names that its feeds have."""

    @classmethod
    def of(cls, feed: Feed, roles: Roles) -> Grove:
        """The last rows of a chain as trees, its first ones as their past. Rows of a graph that
        begins at hidden states are trees without tokens of their own: zeros."""
        batch, rows = step_shape(feed, roles)
        tokens = feed.get(roles.inputs.get("tokens", ""), np.zeros((batch, rows), np.int64))
        past = max(1, rows - len(TREES[0]))
        lengths = np.asarray([max(1, past - 2 * (n % 2)) for n in range(batch)])
        trees = [Tree(tokens[n, past:], TREES[n % 2][: rows - past]) for n in range(batch)]
        return cls(tuple(trees), lengths, past, roles)

    def past(self, feed: Feed) -> Feed:
        """The rows before the trees, as one chain from an empty cache."""
        return feed | self._cut(feed, slice(None, self.longest))

    def rows(self, feed: Feed) -> Feed:
        """The rows of the trees, in sequences that have their past."""
        cut = self._cut(feed, slice(self.longest, None))
        return feed | cut | self.roles.feed(write_index=self.lengths)

    def _cut(self, feed: Feed, rows: slice) -> Feed:
        """Some of the rows of what has one for each token."""
        names = (self.roles.inputs.get(role) for role in ("tokens", "positions", FEATURES, STREAM))
        return {name: feed[name][:, rows] for name in names if name in feed}

    def ports(self, slots: int) -> Feed:
        """positions [B, N] and mask [B, 1, N, S] of the trees."""
        depth = np.stack([tree.depth for tree in self.trees])
        mask = np.zeros((*depth.shape[:1], 1, *depth.shape[1:], slots), np.bool_)
        for row, (tree, length) in enumerate(zip(self.trees, self.lengths.tolist(), strict=True)):
            mask[row, 0, :, :length] = True
            mask[row, 0, :, length : length + len(tree.tokens)] = tree.mask
        return self.roles.feed(positions=self.lengths[:, None] + depth, mask=mask)


def step_shape(feed: Feed, roles: Roles) -> tuple[int, int]:
    """Sequences and rows of a step: of its tokens, or of the hidden states it begins at."""
    return feed[roles.inputs["tokens" if "tokens" in roles.inputs else STREAM]].shape[:2]


def _chain(feed: Feed, tokens: Array, roles: Roles) -> Feed:
    """A feed of one sequence from an empty cache."""
    fed = {k: v[:1] for k, v in feed.items()}
    positions = np.arange(len(tokens), dtype=np.int64)
    return fed | roles.feed(tokens=tokens[None], positions=positions[None])


@dataclass(frozen=True)
class TreeMask(Graft):
    """Adds the port mask [B, 1, N, S] bool: true where a new row may see a slot. Neutral: causal.

    Windows and ALiBi biases follow from it and from `positions`, which in a tree are depths.
    """

    laws: ClassVar[tuple[Law, ...]] = (branches,)
    weight_free: ClassVar[tuple[WeightFreeLaw, ...]] = (masks,)

    def requires(self, model: ir.Model) -> None:
        if cache_of(model) is None:
            raise NotApplicable("tree-mask needs a cache; put kv-cache before it")
        if (port := port_of(model, "mask")) is not None:
            raise NotApplicable("the graph already has a tree mask", [port.name])
        if TransferNote.read(model) is not None:
            raise NotApplicable(
                "hidden-transfer finds the rows of a tree by its mask; put tree-mask before it"
            )

    def apply(self, model: ir.Model) -> None:
        graph = model.graph
        inputs = [input_of(model, role) for role in ("tokens", "positions", "write_index")]
        cache, (tokens, positions, write_index) = cache_of(model), inputs
        assert cache is not None
        assert tokens is not None
        assert positions is not None
        assert write_index is not None
        mask = new_input(graph, "mask", ir.DataType.BOOL, ["B", 1, "N", "S"])
        emit = Emit(graph, self.name(), graph[0], block=SHARED)
        slots = SlotMasks(emit, tokens, positions, write_index, cache, mask)
        for node in with_role(graph, "attention"):
            node.replace_input_with(3, slots.of(node))
        write_ports(
            model, [*read_ports(model), Port("mask", "mask", "in", "bool", ("B", 1, "N", "S"))]
        )
        drop_unused(model)

    def neutral(self, feed: Feed, after: ir.Model) -> Feed:
        slots = feed[slot_ports(read_ports(after), "in", TARGET)[0].name].shape[2]
        roles = roles_of(after)
        start, tokens = (feed[roles.inputs[role]] for role in ("write_index", "tokens"))
        return feed | roles.feed(mask=causal_mask(start, tokens.shape[1], slots))
