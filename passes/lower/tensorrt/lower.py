"""lower-tensorrt: from canonical ops to what TensorRT's ONNX importer takes, in one precision.

TensorRT's key-value cache update wants a static capacity; its Attention has one output, one value
size and no soft cap; its networks are strongly typed, so every Cast is written here. Ports keep
their types except the caches, which take the precision of the engine.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from graftline.errors import NotApplicable, nearest
from graftline.evaluate import Feed
from graftline.facts import DecoderFacts, Facts, read_facts, write_facts
from graftline.nearness import OF_FACTS
from graftline.passes.anchors.one_pass import ONE_PASS
from graftline.passes.grafts.kv_cache import POISON
from graftline.passes.graph.emit import drop_unused
from graftline.passes.graph.ports import roles_of
from graftline.passes.graph.weights import tensor_of
from graftline.passes.laws.common import infer_shapes
from graftline.passes.lower.precision import PRECISIONS, Precision
from graftline.passes.lower.tensorrt.attention import AttentionLowering
from graftline.passes.lower.tensorrt.commit import (
    COUNT,
    SUFFIX,
    NextStepCommits,
    committed,
    deferred,
    unmoved,
)
from graftline.passes.lower.tensorrt.importable import refusals
from graftline.passes.lower.tensorrt.operators import inline_operators, keep_operators
from graftline.passes.pipeline.graft import Graft, Law, Stage
from graftline.plugins.spec import DOMAIN, TREE_LIMIT
from graftline.ports import Port, read_ports, slot_ports, write_ports

TREE = ("N", "P", "M")
"""Nodes of this step's tree, of the last step's, of the next step's."""
SMALLEST = 16
"""Slots that the feeds of the laws need."""


@dataclass(frozen=True)
class LowerTensorrt(Graft):
    """What TensorRT imports: a cache of fixed capacity, plain Attention, one strict precision.

    `dtype` is fp32, fp16 or bf16 (weights, activations and caches; norms accumulate, and logits,
    masks and what goes in and out of a host that runs once stay, in fp32). `capacity` is the number
    of cache slots S, less where the host addresses fewer positions. A step that commits its caches
    commits them with the next step's write (see NextStepCommits). `plugins` keeps graftline's
    operators for a library that takes plugins, whose kernels are compiled for trees of `rows`
    nodes: N, P and M are then numbers; else they become standard operators. Neutral: the caches and
    the mask, padded to S; nothing left to commit.
    """

    stage: ClassVar[Stage] = "lower"
    laws: ClassVar[tuple[Law, ...]] = (deferred,)

    dtype: str = "fp16"
    capacity: int = 2048
    plugins: bool = False
    rows: int = 64

    def requires(self, model: ir.Model) -> None:
        if self.dtype not in PRECISIONS:
            near = nearest(self.dtype, PRECISIONS)
            raise NotApplicable(f"lower-tensorrt has no dtype '{self.dtype}'{near}")
        if self.capacity < SMALLEST:
            raise NotApplicable(
                f"lower-tensorrt: capacity is at least {SMALLEST} slots, not {self.capacity}"
            )
        own = any(n.domain == DOMAIN for n in model.graph)
        if self.plugins and own and not 1 <= self.rows <= TREE_LIMIT:
            raise NotApplicable(
                f"lower-tensorrt: plugins take trees of 1 to {TREE_LIMIT} rows, not {self.rows}"
            )
        facts, low = read_facts(model), PRECISIONS[self.dtype].numpy().name
        if facts.kind in ONE_PASS and facts.dtype not in ("float32", low):
            raise NotApplicable(
                f"lower-tensorrt: the {facts.kind} computes in {facts.dtype}, not in {low}; use "
                f"--dtype {OF_FACTS[facts.dtype]}"
            )
        if found := refusals(model.graph):
            reason, nodes = next(iter(found.items()))
            more = f" (and {len(found) - 1} more reasons)" if len(found) > 1 else ""
            raise NotApplicable(f"lower-tensorrt: {reason}{more}", nodes)

    def apply(self, model: ir.Model) -> None:
        graph, low = model.graph, PRECISIONS[self.dtype]
        facts = read_facts(model)
        share_weights(graph)
        NextStepCommits(model, self.name()).apply()
        kept = keep_operators(model, self.name()) if self.plugins else False
        if not kept:
            inline_operators(model, self.name())
        infer_shapes(model)
        sizes = {"S": self._slots(facts)} if slot_ports(read_ports(model)) else {}
        sizes |= dict.fromkeys(TREE, self.rows) if kept else {}
        _fix(model, sizes)
        AttentionLowering(graph, self.name(), rounded=low != ir.DataType.FLOAT).apply()
        ports, own = read_ports(model), facts.kind in ONE_PASS and facts.dtype == low.numpy().name
        if low != ir.DataType.FLOAT and not own:
            caches = frozenset(p.name for p in slot_ports(ports))
            Precision(graph, low, caches, self.name()).apply()
        write_ports(model, [_lowered(p, sizes, low.numpy().name) for p in ports])
        write_facts(model, replace(facts, dtype=low.numpy().name))
        drop_unused(model)

    def _slots(self, facts: Facts) -> int:
        """Of a cache: no more than the host has positions. Draft heads on a state have none."""
        positions = facts.positions if isinstance(facts, DecoderFacts) else 0
        return min(self.capacity, max(positions or self.capacity, SMALLEST))

    def neutral(self, feed: Feed, after: ir.Model) -> Feed:
        fed = dict(feed)
        for port in read_ports(after):
            held = port.state == "slots"
            if port.name not in feed or not (held or port.role == "mask"):
                continue
            array = feed[port.name].astype(np.dtype(port.dtype))
            axis = 2 if held else 3
            room = [(0, 0)] * array.ndim
            room[axis] = (0, int(port.shape[axis]) - array.shape[axis])
            fill = POISON if held else 0
            fed[port.name] = np.pad(array, room, constant_values=fill)
        deferred = any(p.role == COUNT for p in read_ports(after))
        return {**fed, **unmoved(feed, roles_of(after))} if deferred else fed

    def carried(self, outputs: Feed, after: ir.Model) -> Feed:
        return committed(outputs, after)

    def replaced(self, before: ir.Model) -> frozenset[str]:
        return frozenset(p.name for p in read_ports(before) if p.name.endswith(SUFFIX))


def _lowered(port: Port, sizes: Mapping[str, int], dtype: str) -> Port:
    """A port of the engine: S is a number, caches have the engine's precision."""
    shape = tuple(sizes.get(d, d) if isinstance(d, str) else d for d in port.shape)
    return replace(port, shape=shape, dtype=dtype if port.state == "slots" else port.dtype)


def share_weights(graph: ir.Graph) -> None:
    """One initializer for the same numbers: a tied embedding and lm_head are one engine weight."""
    kept: dict[object, ir.Value] = {}
    for value in list(graph.initializers.values()):
        tensor = tensor_of(value)
        place: object = id(tensor)
        if isinstance(tensor, ir.ExternalTensor):
            place = (tensor.path, tensor.offset, tensor.dtype, tuple(tensor.shape))
        first = kept.setdefault(place, value)
        if first is not value:
            value.replace_all_uses_with(first)


def _fix(model: ir.Model, sizes: Mapping[str, int]) -> None:
    """Give symbols their sizes wherever a shape names them."""
    graph = model.graph
    for value in [*graph.inputs, *(v for node in graph for v in node.outputs)]:
        if value.shape is not None and any(_symbol(d) in sizes for d in value.shape):
            value.shape = ir.Shape([sizes.get(_symbol(d) or "", d) for d in value.shape])


def _symbol(dim: int | ir.SymbolicDim) -> str | None:
    return None if isinstance(dim, int) else dim.value
