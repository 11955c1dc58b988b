"""The law of draft heads: each is its formula, on what the host itself gives to its own lm_head."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from graftline.evaluate import Array, Feed
from graftline.facts import DraftHeadFacts, read_facts
from graftline.law import Evidence
from graftline.passes.grafts.head_parts import head_parts
from graftline.passes.grafts.tap import tapped_value
from graftline.passes.graph.emit import new_output
from graftline.passes.graph.ports import roles_of
from graftline.passes.laws.compare import Comparison
from graftline.passes.pipeline.graft import Evaluate, Graft
from graftline.ports import Port, by_role, read_ports
from graftline.roles import HEADS_IDS, HEADS_LOGITS, HEADS_TOPK, LAST


def head_formula(
    graft: Graft, before: ir.Model, after: ir.Model, feed: Feed, evaluate: Evaluate
) -> Evidence:
    """Head i of every row is its formula in numpy, over what enters the host's own lm_head; the
    best candidates are the largest logits."""
    parts = head_parts(before) or head_parts(after)  # a model that carries heads still does
    outputs = evaluate(after, graft.neutral(feed, after))
    assert parts is not None
    given = read_by_heads(before, feed, evaluate)
    expected = parts.formula(*given)
    owner = by_role(read_ports(after), HEADS_IDS)[0].owner
    got = {role: outputs[name] for role, name in roles_of(after, owner).outputs.items()}
    comparison = Comparison(graft.name(), "head-formula", "float32")
    worst = best_of(comparison, got, expected)
    if HEADS_LOGITS in got:
        worst = max(worst, comparison.output(HEADS_LOGITS, got[HEADS_LOGITS], expected))
    rows = given[0].shape[0] * given[0].shape[1]
    width = got[HEADS_IDS].shape[-1]
    what = f"{parts.heads} heads of {rows} rows are their formula, the best {width} of each"
    return Evidence(what, worst, comparison.limit)


def best_of(comparison: Comparison, got: Feed, expected: Array) -> float:
    """The largest difference of candidates, by role, from the largest of logits [..., heads, V].
    Raises LawBroken where they are others."""
    ids, values, vocabulary = got[HEADS_IDS], got[HEADS_TOPK], expected.shape[-1]
    largest = -np.sort(-expected, axis=-1)[..., : ids.shape[-1]]
    worst = comparison.output(HEADS_TOPK, values, largest)
    if ids.min() < 0 or ids.max() >= vocabulary:
        raise comparison.broken(HEADS_IDS, f"an id is not among {vocabulary} tokens")
    found = np.take_along_axis(expected, ids, axis=-1)
    worst = max(worst, comparison.output(HEADS_IDS, values, found))
    if np.any(np.diff(np.sort(ids, axis=-1)) == 0):
        raise comparison.broken(HEADS_IDS, "one token is named twice")
    return worst


def read_by_heads(model: ir.Model, feed: Feed, evaluate: Evaluate) -> tuple[Array, ...]:
    """What heads read: what their own graph is fed, states [B, N, H] first; or what enters the
    lm_head of a host."""
    if isinstance(read_facts(model), DraftHeadFacts):
        ports = read_ports(model)
        found = (by_role(ports, role, "in") for role in ("hidden", "tokens", LAST))
        return tuple(feed[port[0].name] for port in found if port)
    host = model.clone()
    source = tapped_value(host.graph, Port("", "hidden", "out", "float32", ()))
    new_output(host.graph, source, "final", source.dtype or ir.DataType.FLOAT, ["B", "N", "H"])
    return (evaluate(host, feed)["final"],)
