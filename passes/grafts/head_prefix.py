"""head-prefix: the decoder layer in front of draft heads, in the target's own step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from graftline.errors import NotApplicable
from graftline.evaluate import Array, Feed
from graftline.facts import decoder_facts
from graftline.head_notes import NORM, TapReading
from graftline.law import Evidence
from graftline.passes.anchors.anchors import block_outputs, with_role
from graftline.passes.grafts.adapter import FLOAT, HIDDEN, POSITIONS, STATE, Adapter
from graftline.passes.grafts.adapter_cache import (
    BLOCK_NAME,
    check_adapter,
    count_weights,
    empty_adapter,
    write_rows,
)
from graftline.passes.grafts.head_features import tapped_states
from graftline.passes.grafts.kv_cache import carried_caches, some_rows
from graftline.passes.grafts.masks import SlotMasks
from graftline.passes.grafts.tree_mask import Grove, causal_mask
from graftline.passes.graph.cut import elements
from graftline.passes.graph.emit import Emit, new_output
from graftline.passes.graph.ports import input_of, roles_of
from graftline.passes.laws.compare import Comparison, activation_dtype
from graftline.passes.pipeline.graft import ROLE, Evaluate, Graft, Law
from graftline.ports import FEATURES, Port, by_role, read_ports, write_ports
from graftline.roles import Roles
from graftline.tree import Tree

_STREAM = "prefix.stream"


def prefixed(
    graft: Graft, before: ir.Model, after: ir.Model, feed: Feed, evaluate: Evaluate
) -> Evidence:
    """The features are what the head's layer alone makes of the host's states, in one step and in
    two, the caches carried over; and where a step scores trees, those of every branch are what they
    are in a chain."""
    assert isinstance(graft, HeadPrefix)
    alone, made = Adapter.of(after, graft.name(), prefix=True).model, roles_of(after)
    stream = _stream_of(graft, before, after, feed, evaluate)
    read = {HIDDEN: stream, POSITIONS: feed[made.inputs["positions"]]}
    expected = evaluate(alone, read)[STATE]
    comparison = Comparison(graft.name(), "prefixed", activation_dtype(after))
    whole = evaluate(after, graft.neutral(feed, after))[FEATURES]
    worst = comparison.output(FEATURES, whole, expected)
    rows = expected.shape[1]
    cut = max(1, rows // 2)
    half = evaluate(after, graft.neutral(_cut(made, feed, slice(0, cut)), after))
    rest = evaluate(after, _cut(made, feed, slice(cut, rows)) | carried_caches(after, half))
    worst = max(worst, comparison.output(FEATURES, rest[FEATURES], expected[:, cut:]))
    what = f"features of {rows} rows, and of {cut} before {rows - cut}, are the layer's alone"
    if "mask" in made.inputs:
        count, gap = _branches(graft, after, feed, evaluate, comparison)
        worst, what = max(worst, gap), f"{what}; {count} branches equal their chains"
    return Evidence(what, worst, comparison.limit)


def _stream_of(
    graft: HeadPrefix, before: ir.Model, after: ir.Model, feed: Feed, evaluate: Evaluate
) -> Array:
    """[B, N, H] in fp32: what the layer reads of the host."""
    host = before.clone()
    source = tapped_states(host.graph, [graft.block_of(after)])[0]
    tap = Emit(host.graph, _STREAM).op("Identity", [source])
    shape = ["B", "N", decoder_facts(host).hidden]
    new_output(host.graph, tap, _STREAM, source.dtype or FLOAT, shape)
    return evaluate(host, feed)[_STREAM].astype(np.float32)


def _cut(made: Roles, feed: Feed, at: slice) -> Feed:
    """A feed of some of its rows, whose chains see all before them."""
    fed = some_rows(made, feed, at)
    if "mask" in made.inputs:
        index = fed[made.inputs["write_index"]]
        slots = feed[made.inputs["mask"]].shape[-1]
        count = fed[made.inputs["tokens"]].shape[1]
        fed |= made.feed(mask=causal_mask(index, count, slots))
    return fed


def _branches(
    graft: Graft, after: ir.Model, feed: Feed, evaluate: Evaluate, comparison: Comparison
) -> tuple[int, float]:
    """How many branches of trees, after pasts of different lengths, were compared with chains after
    the same; and the largest gap."""
    made = roles_of(after)
    grove, slots = Grove.of(feed, made), feed[made.inputs["mask"]].shape[-1]
    past = evaluate(after, graft.neutral(_cut(made, feed, slice(0, grove.longest)), after))
    known = graft.neutral(feed, after) | carried_caches(after, past)

    def features(trees: Sequence[Tree]) -> Array:
        some = replace(grove, trees=tuple(trees))
        tokens = np.stack([tree.tokens for tree in trees])
        asked = np.tile(np.arange(tokens.shape[1], dtype=np.int64), (len(trees), 1))
        rows = made.feed(tokens=tokens, rows=asked, write_index=grove.lengths)
        return evaluate(after, known | rows | some.ports(slots))[FEATURES]

    scored, count, worst = features(grove.trees), 0, 0.0
    for n, tree in enumerate(grove.trees):
        for leaf in (m for m in range(len(tree.tokens)) if not tree.children[m]):
            path = list(tree.path_to(leaf))
            chain = features([Tree.chain(tree.tokens[path].tolist())] * len(grove.trees))
            worst = max(worst, comparison.output(FEATURES, scored[n, path], chain[n]))
            count += 1
    return count, worst


@dataclass(frozen=True)
class HeadPrefix(Graft):
    """Adds the output features [B, N, H] of draft heads that stand behind a decoder layer of their
    own (Hydra++, arXiv 2402.05109): what that layer makes of the hidden states of every row of the
    step; and its cache, adapter.key and adapter.value [B, K, S, D], which is rolled back with the
    host's. Trees are seen as the host's blocks see them. Neutral: an empty cache.

    `blocks`: of a host that was cut to so many, the nearest is read.
    """

    laws: ClassVar[tuple[Law, ...]] = (prefixed,)

    blocks: int = 0

    def requires(self, model: ir.Model) -> None:
        check_adapter(self.name(), model, prefix=True)
        if found := by_role(read_ports(model), FEATURES, "out"):
            raise NotApplicable("the graph has the features of a head already", [found[0].name])
        if self.block_of(model) == NORM and not with_role(model.graph, "final_norm"):
            raise NotApplicable("head-prefix: the head reads the final norm, which is not here")

    def apply(self, model: ir.Model) -> None:
        graph, size, name = model.graph, elements(model), self.name()
        adapter, emit = Adapter.of(model, name, prefix=True), Emit(graph, name, block=BLOCK_NAME)
        (source,) = tapped_states(graph, [self.block_of(model)])
        tokens, positions, index = (
            input_of(model, role) for role in ("tokens", "positions", "write_index")
        )
        assert tokens is not None
        assert positions is not None
        assert index is not None
        x, rows, slots = write_rows(model, emit, adapter, source, decoder_facts(model).layers - 1)
        (cache, keys), (_, values) = slots
        mask = SlotMasks(emit, tokens, positions, index, cache, input_of(model, "mask")).visible()
        state, attention = adapter.state(emit, x, rows, positions, (keys, values, mask))
        attention.metadata_props[ROLE] = "attention"
        shape = ("B", "N", decoder_facts(model).hidden)
        new_output(graph, emit.op("Identity", [state]), FEATURES, FLOAT, shape)
        port = Port(FEATURES, FEATURES, "out", "float32", shape)
        write_ports(model, [*read_ports(model), port])
        count_weights(model, size)

    def neutral(self, feed: Feed, after: ir.Model) -> Feed:
        return feed | empty_adapter(feed, after)

    def within(self, blocks: int) -> HeadPrefix:
        return replace(self, blocks=blocks)

    def block_of(self, model: ir.Model) -> int:
        """The block that the layer reads, or NORM for the final norm."""
        reading = TapReading.read(Adapter.of(model, self.name(), prefix=True).model)
        assert reading is not None, "the graph of such a layer says what it reads"
        (layer,) = reading.layers
        return min(layer, len(block_outputs(model.graph)) - 1) if self.blocks else layer
