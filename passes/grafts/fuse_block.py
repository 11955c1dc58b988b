"""fuse-block: the step drafts the next chain by a draft block that keeps a cache in it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from graftline.errors import NotApplicable
from graftline.evaluate import Array, Feed
from graftline.facts import decoder_facts
from graftline.owners import HEAD
from graftline.passes.grafts.block_copy import BlockCopy, check_block, draft_block, features_of
from graftline.passes.grafts.fuse_draft import typed_port
from graftline.passes.grafts.kv_cache import POISON
from graftline.passes.graph.emit import Emit, drop_unused, new_input, new_output
from graftline.passes.graph.operators import calls
from graftline.passes.graph.ports import input_of, port_of, roles_of, value_of
from graftline.passes.graph.text import write
from graftline.passes.laws.fused_block import drafted_by_block
from graftline.passes.pipeline.graft import Graft, Law, Stage
from graftline.plugins.tree_verify import TREE_VERIFY
from graftline.ports import FEATURES, Port, read_ports, slot_ports, write_ports
from graftline.roles import DRAFT_LOGITS

INT64, FLOAT = ir.DataType.INT64, ir.DataType.FLOAT
TEMPLATE = "template.parents"
DEEPEST = 16
"""Most drafts of a chain: each is a copy of the head."""
_ACCEPTED = """
    index = Range (zero, Squeeze (Shape <start = 1, end = 2> (path), axis_0), one)
    features = GatherND <batch_dims = 1> (hidden, Unsqueeze (Max (path, zero), axis_2))
    tokens = Max (accepted, zero)
    start = Unsqueeze (write_index, axis_1)
    place = Add (start, index)
    positions = Min (place, last_position)
    slot = Range (zero, Squeeze (Shape <start = 2, end = 3> (cache), axis_0), one)
    seen = LessOrEqual (slot, Unsqueeze (place, axis_2))
    mask = Unsqueeze (seen, axis_1)
    counted = Unsqueeze (count, axis_1)
    rows = Sub (counted, one)
    end = Add (start, counted)
    held = Unsqueeze (Less (slot, Unsqueeze (end, axis_2)), axis_1)
    first = Sub (rows, rows)
"""
"""What the head reads of a step: row j [B, N] is the j-th accepted token, with the feature of the
node before it, in slot write_index + j; what lies behind the accepted ones nobody sees. `end`
[B, 1]: the slot behind them; `held` [B, 1, 1, S]: the slots before it."""
_DRAFTED = """
    positions = Min (Add (end, ahead), last_position)
    every = GreaterOrEqual (Unsqueeze (Unsqueeze (end, axis_2), axis_1), zero)
    mask = Concat <axis = -1> (held, And (every, open))
"""
"""A drafted row: `ahead` [1] slots behind the end, it sees what is held and, of the drafts, those
that are `open` [1, 1, 1, depth - 1]."""
_CHAIN = """
    node = Range (zero, Squeeze (Shape (above), axis_0), one)
    tokens = Gather <axis = 1> (chain, Min (node, deepest))
    parents = Expand (Unsqueeze (above, axis_0), Shape (tokens))
"""
"""[B, M] both; a host that scores wider steps on this graph reads neither."""


@dataclass(frozen=True)
class FuseBlock(Graft):
    """EAGLE (arXiv 2401.15077, 2503.01840) in the graph. The head reads what the step accepts, each
    token with the target's feature before it, into a cache of its own, and drafts the next chain of
    at most `depth` tokens on features of its own, whose rows are in no cache.

    Adds template.parents [M], that of a chain of at most depth + 1 rows, and the caches of the
    owner head.0, as many slots of them committed as of the target's. Outputs next.tokens,
    next.parents [B, M], and of head.0 draft.logits [B, depth], the logit of each draft. Neutral: a
    root alone, an empty cache.
    """

    stage: ClassVar[Stage] = "fuse"

    depth: int = 5
    laws: ClassVar[tuple[Law, ...]] = (drafted_by_block,)

    def requires(self, model: ir.Model) -> None:
        name = self.name()
        if not calls(model.graph, TREE_VERIFY):
            raise NotApplicable(f"{name} drafts from a verified tree; put fuse-verify before it")
        if (port := port_of(model, "next.tokens", "out")) is not None:
            raise NotApplicable("the graph already drafts its next tree", [port.name])
        if not 1 <= self.depth <= DEEPEST:
            raise NotApplicable(f"{name}: depth is 1 to {DEEPEST}, not {self.depth}")
        if (block := draft_block(model)) is None:
            raise NotApplicable(
                f"{name} needs a head that drafts token by token (EAGLE's); give it: --head PATH"
            )
        check_block(name, block)
        if (read := features_of(model)) is None:
            raise NotApplicable(
                f"{name} reads features of the target; put tap{{layers=norm}} or head-features "
                "before it"
            )
        wanted = port_of(block, FEATURES)
        assert wanted is not None, "it has been checked"
        if read.shape[-1] != wanted.shape[-1]:
            raise NotApplicable(
                f"the head reads features of {wanted.shape[-1]}, and the host's have "
                f"{read.shape[-1]}: it is another model's", [read.name],
            )  # fmt: skip

    def apply(self, model: ir.Model) -> None:
        graph, block, read = model.graph, draft_block(model), features_of(model)
        assert block is not None
        assert read is not None
        template = new_input(graph, TEMPLATE, INT64, ("M",))
        copy = BlockCopy(model, block, self.name(), self.depth - 1)
        verify, emit = calls(graph, TREE_VERIFY)[0], Emit(graph, self.name())
        tokens, parents = verify.inputs[1:3]
        assert tokens is not None
        assert parents is not None
        path, accepted, count, root = verify.outputs
        hidden, index = value_of(model, read), input_of(model, "write_index")
        assert index is not None
        last = (decoder_facts(model).positions or np.iinfo(np.int64).max) - 1
        limit = emit.const("draft.last_position", [last], np.int64)
        given = {
            "path": path, "accepted": accepted, "count": count, "hidden": hidden,
            "write_index": index, "cache": copy.cache, "last_position": limit,
        }  # fmt: skip
        names = ["tokens", "features", "positions", "mask", "rows", "end", "held", "first"]
        made = dict(zip(names, write(emit, _ACCEPTED, given, names), strict=True))
        end, held, first = (made.pop(name) for name in ("end", "held", "first"))
        logits, best, states = copy(made)
        picked = {"states": states, "rows": made["rows"]}
        text = "state = GatherND <batch_dims = 1> (states, Unsqueeze (rows, axis_2))"
        (state,) = write(emit, text, picked, ["state"])
        drafts, scores = [best], [_largest(emit, logits)]
        for ahead in range(1, self.depth):
            given = {
                "end": end, "held": held, "last_position": limit,
                "ahead": emit.const(f"draft.ahead.{ahead - 1}", [ahead - 1], np.int64),
                "open": emit.const(f"draft.open.{ahead}", _first(ahead, self.depth - 1)),
            }  # fmt: skip
            positions, mask = write(emit, _DRAFTED, given, ["positions", "mask"])
            row = {"tokens": best, FEATURES: state, "positions": positions, "mask": mask}
            logits, best, state = copy({**row, "rows": first})
            drafts.append(best)
            scores.append(_largest(emit, logits))
        self._bring_out(model, copy, drafts, scores, root, template, (tokens, parents))
        drop_unused(model)

    def _bring_out(
        self,
        model: ir.Model,
        copy: BlockCopy,
        drafts: list[ir.Value],
        scores: list[ir.Value],
        root: ir.Value,
        template: ir.Value,
        mirrors: tuple[ir.Value, ir.Value],
    ) -> None:
        """The next chain, and the logits of its drafts, as outputs."""
        emit, graph = Emit(model.graph, self.name()), model.graph
        top = emit.op("Unsqueeze", [root, emit.const("axes.1", [1], np.int64)])
        given = {
            "chain": emit.op("Concat", [top, *drafts], axis=1), "above": template,
            "deepest": emit.const("draft.deepest", self.depth, np.int64),
        }  # fmt: skip
        chain = write(emit, _CHAIN, given, ["tokens", "parents"])
        ports = [typed_port(template, "in"), *copy.ports]
        shape = ("B", self.depth)
        name = f"{HEAD}.{DRAFT_LOGITS}"
        new_output(graph, emit.op("Concat", scores, axis=1), name, FLOAT, shape)
        ports.append(Port(name, DRAFT_LOGITS, "out", "float32", shape, owner=HEAD))
        for value, role, mirror in zip(chain, ("tokens", "parents"), mirrors, strict=True):
            new_output(graph, value, f"next.{role}", INT64, ("B", "M"))
            ports.append(typed_port(value, "out", mirror.name))
        write_ports(model, [*read_ports(model), *ports])

    def neutral(self, feed: Feed, after: ir.Model) -> Feed:
        ports = read_ports(after)
        own = slot_ports(ports, "in")[0]
        batch, slots = feed[own.name].shape[0], feed[own.name].shape[2]
        heads = slot_ports(ports, "in", HEAD)
        shapes = {p.name: (batch, int(p.shape[1]), slots, int(p.shape[3])) for p in heads}
        caches = {p.name: np.full(shapes[p.name], POISON, np.dtype(p.dtype)) for p in heads}
        template = np.asarray([-1], np.int64)
        return feed | caches | roles_of(after).feed(**{TEMPLATE: template})


def _first(count: int, of: int) -> Array:
    """[1, 1, 1, of] bool: the first `count`."""
    return (np.arange(of) < count)[None, None, None]


def _largest(emit: Emit, logits: ir.Value) -> ir.Value:
    """[B, 1]: the largest of logits [B, 1, V]."""
    axes = emit.const("axes.-1", [-1], np.int64)
    value = emit.op("ReduceMax", [logits, axes], keepdims=0)
    value.type = ir.TensorType(FLOAT)
    return value
