"""The neutral law of the front: the canonical host computes what the raw graph computes.

Both are cut to the same blocks where the residual stream has kept its names, so that it runs at
every size; where it has not, the whole graphs are compared.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from graftline.errors import CannotEvaluate
from graftline.facts import decoder_facts
from graftline.law import Evidence
from graftline.passes.anchors.anchors import block_outputs
from graftline.passes.anchors.reduce import (
    chosen_blocks,
    drop_unread,
    feed_rows,
    keep_blocks,
    weight_bytes,
)
from graftline.passes.graph.emit import drop_unused
from graftline.passes.graph.ports import roles_of
from graftline.passes.laws.compare import Comparison, activation_dtype
from graftline.passes.pipeline.graft import Evaluate
from graftline.ports import read_ports
from graftline.raw_ports import raw_feed, raw_logits, read_raw
from graftline.roles import chain_feed


def canonical_is_raw(
    raw: ir.Model, canonical: ir.Model, evaluate: Evaluate, limit: int
) -> Evidence:
    """Logits of a canonical, anchored host against those of the raw graph it was made from, fed by
    role. `limit`: bytes of weights that may be evaluated; beyond it the law is not run."""
    kept = chosen_blocks(canonical)
    count = len(block_outputs(canonical.graph))
    pair = _cut(raw, canonical, kept) if len(kept) < count else None
    if pair is not None and weight_bytes(pair[0]) > limit:
        kept = chosen_blocks(canonical, least=1)
        pair = _cut(raw, canonical, kept)
    told = f"blocks {'+'.join(map(str, kept))} of {count}"
    if pair is None:
        pair, told = (raw.clone(), canonical.clone()), f"all {count} blocks"
    size = weight_bytes(pair[0])
    if size > limit:
        why = f"{told} weigh {size / 1e9:.1f} GB, of which the oracle takes {limit / 1e9:.1f} GB"
        return Evidence(f"{why} here", status="not_run")
    try:
        return _compared(pair, canonical, evaluate, told)
    except CannotEvaluate as error:  # an operator of the raw graph that only its runtime has
        return Evidence(str(error), status="not_run")


def _compared(
    pair: tuple[ir.Model, ir.Model], canonical: ir.Model, evaluate: Evaluate, told: str
) -> Evidence:
    ports, facts = read_raw(canonical.metadata_props), decoder_facts(canonical)
    roles, rows = roles_of(canonical), feed_rows(canonical)
    feed = chain_feed(read_ports(canonical), facts.vocabulary, rows=rows)
    tokens, logits = feed[roles.inputs["tokens"]], roles.outputs["logits"]
    expected = raw_logits(ports, evaluate(pair[0], raw_feed(ports, tokens)))
    alone = [evaluate(pair[1], {k: v[n : n + 1] for k, v in feed.items()}) for n in range(2)]
    got = np.concatenate([out[logits] for out in alone])[:, -expected.shape[1] :]
    comparison = Comparison("canonicalize", "neutral", activation_dtype(canonical))
    gap = comparison.output(logits, got, expected)
    what = f"logits of {expected.shape[1]} rows, each sequence alone, are the raw graph's"
    what += f" of a batch of {len(got)}; {told}"
    return Evidence(what, gap, comparison.limit)


def _cut(
    raw: ir.Model, canonical: ir.Model, kept: Sequence[int]
) -> tuple[ir.Model, ir.Model] | None:
    """Both graphs with the blocks `kept` alone; None where the stream's names are not the raw
    graph's."""
    short, whole = raw.clone(), canonical.clone()
    stream = [value.name for value in block_outputs(whole.graph)]
    made = {v.name: v for node in short.graph for v in node.outputs}
    values = [made[name] for name in stream if name in made]
    if len(values) < len(stream) or any(value.is_graph_output() for value in values):
        return None
    for block, follower in zip(kept, [*kept[1:], len(stream)], strict=True):
        old, new = values[follower - 1], values[block]
        if old is not new:
            for user, index in list(old.uses()):
                user.replace_input_with(index, new)
    drop_unused(short)
    drop_unread(short)
    keep_blocks(whole, kept)
    drop_unread(whole)
    return short, whole
