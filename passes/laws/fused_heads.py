"""The law of draft heads in a fused step: the next tree is what they say behind its last row."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from graftline.evaluate import Array, Feed
from graftline.law import Evidence
from graftline.owners import HEAD
from graftline.passes.grafts.head_parts import HeadParts, head_parts
from graftline.passes.graph.ports import roles_of
from graftline.passes.laws.compare import Comparison
from graftline.passes.laws.fused import LEAST_ENDS, LENGTHS, drafted_step
from graftline.passes.laws.heads import best_of, read_by_heads
from graftline.passes.pipeline.graft import Evaluate, Graft
from graftline.roles import HEADS_IDS

LAW = "drafted-by-heads"


@dataclass(frozen=True)
class _Shape:
    """A template [M] in which every head and every rank stands somewhere, and no node's depth is
    its number."""

    parents: Array
    depths: Array
    ranks: Array

    @classmethod
    def of(cls, heads: int, width: int) -> _Shape:
        """Below the root all ranks, and below its second child a chain of all further heads, each
        of another rank; then a node off that chain."""
        parents, depths, ranks = [-1, *[0] * width], [0, *[1] * width], [0, *range(width)]
        above = min(2, width)
        for head in range(1, heads):
            for rank in (head % width, (head + 1) % width):
                parents.append(above)
                depths.append(head + 1)
                ranks.append(rank)
            above = len(parents) - 2
        return cls(*(np.asarray(column, np.int64) for column in (parents, depths, ranks)))

    def feed(self) -> Feed:
        return {f"template.{name}": array for name, array in vars(self).items()}


def drafted_by_heads(
    graft: Graft, before: ir.Model, after: ir.Model, feed: Feed, evaluate: Evaluate
) -> Evidence:
    """After steps whose paths end at several rows: the candidates are the heads' formula in numpy
    over what enters the host's own lm_head at the last accepted row, and the next tree is its
    template of them, below the token that the step chose last."""
    parts = head_parts(before) or head_parts(after)  # a model that carries heads still does
    assert isinstance(parts, HeadParts)
    comparison = Comparison(graft.name(), LAW, "float32")
    made, theirs = roles_of(after), roles_of(after, HEAD)
    worst, ends = 0.0, set[int]()
    for lengths in LENGTHS:
        step, settings = drafted_step(before, feed, lengths, evaluate)
        host, states = _answer(before, step.fused() | settings, evaluate)
        last = host["path"].max(axis=1)
        ends |= set(last.tolist())
        expected = parts.formula(states[np.arange(len(last)), last][:, None])
        shape = _Shape.of(parts.heads, _width(after))
        got = evaluate(after, step.fused(made) | settings | made.feed(**shape.feed()))
        best = {role: got[name] for role, name in theirs.outputs.items()}
        worst = max(worst, best_of(comparison, best, expected))
        root = np.take_along_axis(host["accepted"], host["count"][:, None] - 1, axis=1)[:, 0]
        tree = _tree(shape, best[HEADS_IDS], root)
        for role, array in tree.items():
            if not np.array_equal(got[made.outputs[role]], array):
                raise comparison.broken(role, "is not the template's, of these candidates")
    if len(ends) < LEAST_ENDS:
        raise comparison.broken("next.tokens", f"cannot be judged: every path ends at row {ends}")
    rows = ", ".join(map(str, sorted(ends)))
    what = f"heads read the rows {rows}, where paths end, and draft the template's tree"
    return Evidence(what, worst, comparison.limit)


def _width(after: ir.Model) -> int:
    """Candidates of each head of a graph that drafts by heads."""
    name = roles_of(after, HEAD).outputs[HEADS_IDS]
    shape = next(v for v in after.graph.outputs if v.name == name).shape
    assert shape is not None
    width = shape[-1]
    assert isinstance(width, int)
    return width


def _answer(before: ir.Model, given: Feed, evaluate: Evaluate) -> tuple[Feed, Array]:
    """What the step says, by role; and what its rows [B, N, H] give to the lm_head."""
    answer = evaluate(before, given)
    host = {role: answer[name] for role, name in roles_of(before).outputs.items()}
    (states,) = read_by_heads(before, given, evaluate)
    return host, states


def _tree(shape: _Shape, ids: Array, root: Array) -> Feed:
    """Node by node; `ids` [B, 1, heads, k]."""
    tokens = np.tile(root[:, None], (1, len(shape.parents)))
    for node in range(1, len(shape.parents)):
        tokens[:, node] = ids[:, 0, shape.depths[node] - 1, shape.ranks[node]]
    return {"next.tokens": tokens, "next.parents": np.tile(shape.parents, (len(root), 1))}
