"""An exit's adapter, or a prefix of heads: another block's states, another slot, a lost part."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from faults.graphs import constant, op, rewired
from faults.mutant import Mutant, after
from graftline.passes import GRAFTS
from graftline.passes.anchors.anchors import block_outputs
from graftline.passes.grafts.masks import SlotMasks
from graftline.passes.graph.emit import Emit
from graftline.passes.graph.ports import input_of
from graftline.passes.pipeline.graft import MADE_BY

CACHE, EXIT, PACK = (GRAFTS[name] for name in ("adapter-cache", "adapter-exit", "pack-rows"))
PREFIX = GRAFTS["head-prefix"]
ADAPTER, PREFIXED = {"head": "kangaroo", "exits": (1,)}, {"head": "hydra-prefix"}


def _own(model: ir.Model, op_type: str) -> list[ir.Node]:
    """The adapter's nodes of that type."""
    names = CACHE.name(), EXIT.name(), PREFIX.name()
    made = (n for n in model.graph if n.metadata_props.get(MADE_BY) in names)
    return [n for n in made if n.op_type == op_type]


def _another_block(model: ir.Model) -> int:
    """The target's adapter reads what leaves the last block."""
    return rewired(_own(model, "RMSNormalization")[0], 0, block_outputs(model.graph)[-1])


def _unrotated(model: ir.Model) -> int:
    """Keys are written as if all were at position 0."""
    node = _own(model, "RotaryEmbedding")[0]
    node.outputs[0].replace_all_uses_with(node.inputs[0])  # pyright: ignore[reportArgumentType]
    return 1


def _one_slot_late(model: ir.Model) -> int:
    """The adapter's keys and values are written one slot behind their place."""
    index, nodes = input_of(model, "write_index"), _own(model, "TensorScatter")
    late = op(model, nodes[0], "Add", [index, constant(model, [1], np.int64)])
    return sum(rewired(node, 2, late) for node in nodes)


def _handed_on(model: ir.Model) -> int:
    """The blocks behind the exit go on from what the adapter makes of its hidden states."""
    tap = next(v for v in model.graph.outputs if (v.name or "").startswith("hidden."))
    node = tap.producer()
    assert node is not None
    return rewired(node, 0, _own(model, "Add")[-1].outputs[0])


def _sees_itself_alone(model: ir.Model) -> int:
    """A row of the adapter sees its own slot and none before it."""
    (node,) = _own(model, "LessOrEqual")
    node.outputs[0].replace_all_uses_with(op(model, node, "Equal", list(node.inputs)))
    return 1


def _without_the_stream(model: ir.Model) -> int:
    """What leaves the exit is not added to what the adapter's attention gives."""
    node = _own(model, "Add")[-1]
    node.outputs[0].replace_all_uses_with(node.inputs[1])  # pyright: ignore[reportArgumentType]
    return 1


def _one_for_all(model: ir.Model) -> int:
    """Of several sequences in one call, each has the first one's place in the adapter's cache."""
    found = [n for n in model.graph if n.op_type == "TensorScatter"]
    return sum(rewired(node, 2, found[0].inputs[2]) for node in found)  # pyright: ignore[reportArgumentType]


def _without_its_mlp(model: ir.Model) -> int:
    """The prefix's MLP is left out."""
    (node,) = [n for n in _own(model, "Add") if n.inputs[0].producer().op_type == "Add"]  # pyright: ignore[reportOptionalMemberAccess]
    node.outputs[0].replace_all_uses_with(node.inputs[0])  # pyright: ignore[reportArgumentType]
    return 1


def _sees_siblings(model: ir.Model) -> int:
    """Rows of a tree see all slots before theirs, be they their ancestors or not."""
    mask = input_of(model, "mask")
    if mask is None:
        return 0
    (node,) = _own(model, "Attention")
    slots = SlotMasks(
        Emit(model.graph, PREFIX.name(), node),
        *(input_of(model, role) for role in ("tokens", "positions", "write_index")),  # pyright: ignore[reportArgumentType]
        node.inputs[1].producer().inputs[0],  # pyright: ignore[reportOptionalMemberAccess]
    )
    return rewired(node, 3, slots.visible())


def _behind_the_last_block(model: ir.Model) -> int:
    """The prefix reads what leaves the last block, and not what the final norm gives."""
    return rewired(_own(model, "RMSNormalization")[0], 0, block_outputs(model.graph)[-1])


ADAPTERS = [
    Mutant("prefix-of-another-state", "head-prefix: apply", "it reads the state before the norm",
           "plain", "prefixed", after(PREFIX, _behind_the_last_block), PREFIXED),
    Mutant("prefix-without-an-mlp", "head-prefix: apply", "its MLP is left out",
           "plain", "prefixed", after(PREFIX, _without_its_mlp), PREFIXED),
    Mutant("prefix-unrotated", "head-prefix: apply", "keys have no position",
           "plain", "prefixed", after(PREFIX, _unrotated), PREFIXED),
    Mutant("prefix-one-slot-late", "head-prefix: apply", "its cache is written one slot late",
           "plain", "prefixed", after(PREFIX, _one_slot_late), PREFIXED),
    Mutant("prefix-sees-siblings", "head-prefix: apply", "its rows see other branches",
           "plain", "prefixed", after(PREFIX, _sees_siblings), PREFIXED),
    Mutant("adapter-of-another-block", "adapter-cache: apply", "it reads another block's states",
           "plain", "adapter-rows", after(CACHE, _another_block), ADAPTER),
    Mutant("adapter-unrotated", "adapter-cache: apply", "keys have no position",
           "plain", "adapter-rows", after(CACHE, _unrotated), ADAPTER),
    Mutant("adapter-one-slot-late", "adapter-cache: apply", "its cache is written one slot late",
           "plain", "adapter-rows", after(CACHE, _one_slot_late), ADAPTER),
    Mutant("adapter-handed-to-the-rest", "adapter-exit: apply",
           "the rest goes on from behind the adapter",
           "plain", "adapted", after(EXIT, _handed_on), ADAPTER),
    Mutant("adapter-without-a-past", "adapter-exit: apply", "its rows see no other row",
           "plain", "adapted", after(EXIT, _sees_itself_alone), ADAPTER),
    Mutant("adapter-without-the-stream", "adapter-exit: apply", "the residual is left out",
           "plain", "adapted", after(EXIT, _without_the_stream), ADAPTER),
    Mutant("adapter-rows-of-one-for-all", "pack-rows: _unroll_write",
           "every sequence has the first one's place",
           "plain", "form", after(PACK, _one_for_all), ADAPTER),
]  # fmt: skip
