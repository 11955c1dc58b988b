"""The graph of a draft block, written into its target's: once for the rows that a step accepted,
then for one drafted row after another."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import onnx_ir as ir

from graftline.errors import NotApplicable
from graftline.facts import DraftBlockFacts, read_facts
from graftline.owners import HEAD, TARGET
from graftline.passes.anchors.anchors import with_role
from graftline.passes.graph.emit import Emit, free_name, new_input, new_output
from graftline.passes.graph.ports import input_of, output_of, port_of, value_of
from graftline.passes.graph.weights import tensor_of
from graftline.passes.pipeline.graft import BLOCK, ROLE
from graftline.ports import FEATURES, Port, by_role, read_ports, slot_ports, state_port

BLOCK_GRAPH = "graftline.draft_block"
"""In a model's `meta`: the graph of a draft block, over a cache and features, that a pass may put
into it."""
DRAFTED_ATTENTION = "draft_block.attention"
"""The stamp of attention of a drafted row, over its cache and the rows drafted before it."""
_ROWS = ("tokens", FEATURES, "positions", "mask", "write_index", "rows")


def draft_block(model: ir.Model) -> ir.Model | None:
    """The graph of a draft block that a model carries."""
    return model.meta.get(BLOCK_GRAPH)


def check_block(name: str, block: ir.Model) -> DraftBlockFacts:
    """The facts of a block that a fused step can ask row after row. Raises NotApplicable."""
    facts = read_facts(block)
    if not isinstance(facts, DraftBlockFacts) or not facts.causal or facts.mask_token is not None:
        raise NotApplicable(
            f"{name} needs a head that drafts token by token over a cache of its own (EAGLE's); "
            "use --step host"
        )
    if missing := [role for role in _ROWS if input_of(block, role) is None]:
        raise NotApplicable(
            f"{name}: the head's graph has no input '{missing[0]}'; give its passes kv-cache | "
            "tree-mask | select-rows | reduce-logits | features"
        )
    if output_of(block, "argmax") is None:
        raise NotApplicable(f"{name} needs the head's argmax; put reduce-logits into its passes")
    mask = input_of(block, "mask")
    for node in with_role(block.graph, "attention"):
        if node.inputs[3] is not mask:
            raise NotApplicable(
                f"{name}: the head's attention depends on distance, and a drafted row lies in no "
                "slot; use --step host", [node.name or ""],
            )  # fmt: skip
    if odd := [n for n in block.graph if any(a.type == ir.AttributeType.GRAPH
                                             for a in n.attributes.values())]:  # fmt: skip
        raise NotApplicable(f"{name}: the head's graph has a {odd[0].op_type}", [odd[0].name or ""])
    return facts


@dataclass
class BlockCopy:
    """Writes a block into `model`, node by node, at the graph's end.

    Its caches become inputs and outputs of the owner head.0, written from the target's write_index
    on. The rows of `drafts` behind them are in no cache: they lie in the graph, [B, K, 1, D] each,
    behind the cache. Attention of every one sees as many slots, the last of which are filled with
    what its mask hides, so that it has one shape.
    """

    model: ir.Model
    block: ir.Model
    by: str
    drafts: int
    ports: list[Port] = field(default_factory=list[Port])
    """Of the inputs and outputs that were added."""

    def __post_init__(self) -> None:
        self._emit = Emit(self.model.graph, self.by)
        self._weights: dict[ir.Value, ir.Value] = {}
        facts = read_facts(self.block)
        assert isinstance(facts, DraftBlockFacts)
        self._state = value_of(self.block, state_port(read_ports(self.block), facts.normed_state))
        self._caches = {
            value_of(self.block, p): self._cache(p)
            for p in slot_ports(read_ports(self.block), "in")
        }
        self._written: dict[ir.Value, ir.Value] = {}
        self._drafted: dict[ir.Value, list[ir.Value]] = {v: [] for v in self._caches}

    @property
    def cache(self) -> ir.Value:
        """Any of the caches [B, K, S, D], for its number of slots."""
        return next(iter(self._caches.values()))

    def __call__(self, given: Mapping[str, ir.Value]) -> tuple[ir.Value, ir.Value, ir.Value]:
        """The logits [B, 1, V] that the head's own lm_head gives and the argmax [B, 1], in the
        target's ids, of the row asked for; and all rows' states [B, N, H]. `given`: inputs by role.
        The first call writes the caches; each one after it drafts one row."""
        drafting = bool(self._written)
        known: dict[ir.Value | None, ir.Value | None] = {None: None, **self._caches}
        known |= {input_of(self.block, role): value for role, value in given.items()}
        sizes = {"N": 1, "R": 1} if drafting else {"R": 1}
        for node in self.block.graph:
            if node.op_type == "TensorScatter" and node.inputs[0] in self._caches:
                known[node.outputs[0]] = self._slots(node, known, drafting)
                continue
            self._copy(node, known, sizes, drafting)
        (scored,) = with_role(self.block.graph, "lm_head")
        found = (scored.outputs[0], output_of(self.block, "argmax"), self._state)
        logits, argmax, state = (known[value] for value in found)
        assert logits is not None
        assert argmax is not None
        assert state is not None
        return logits, argmax, state

    def _cache(self, port: Port) -> ir.Value:
        """The input of a cache, in the target's graph."""
        index = port_of(self.model, "write_index")
        assert index is not None
        name = f"{HEAD}.{port.name}"
        value = value_of(self.block, port)
        assert value.dtype is not None
        own = Port(name, port.role, "in", port.dtype, port.shape, port.layer, owner=HEAD,
                   state="slots", valid_by=index.name, compare="written")  # fmt: skip
        self.ports.append(own)
        return new_input(self.model.graph, name, value.dtype, port.shape)

    def _slots(
        self, node: ir.Node, known: Mapping[ir.Value | None, ir.Value | None], drafting: bool
    ) -> ir.Value:
        """What attention reads in the place of a cache: the cache with the accepted rows written,
        and behind it the rows that were drafted."""
        cache, fresh = node.inputs[0], known[node.inputs[1]]
        assert cache is not None
        assert fresh is not None
        if drafting:
            self._drafted[cache].append(fresh)
            rows = self._drafted[cache]
            hidden = [fresh] * (self.drafts - len(rows))
            parts = [self._written[cache], *rows, *hidden]
            value = self._emit.op("Concat", parts, axis=2)
            value.type = cache.type
            value.shape = ir.Shape([d if n != 2 else None for n, d in enumerate(cache.shape or ())])
            return value
        index = input_of(self.model, "write_index")
        given = [self._caches[cache], fresh, index]
        written = self._emit.op("TensorScatter", given, axis=2, mode="linear")
        port = next(p for p in self.ports if p.name == self._caches[cache].name)
        name, dtype = f"{port.name}.out", cache.dtype
        assert dtype is not None
        new_output(self.model.graph, written, name, dtype, port.shape)
        self.ports.append(replace(port, name=name, direction="out", mirror=port.name))
        self._written[cache] = written
        return written

    def _copy(
        self,
        node: ir.Node,
        known: dict[ir.Value | None, ir.Value | None],
        sizes: Mapping[str, int],
        drafting: bool,
    ) -> None:
        inputs = [known[v] if v in known else self._weight(v) for v in node.inputs]
        names = [""] * len(node.outputs)
        copy = self._emit.node(node.op_type, inputs, names, node.domain)
        for attribute in node.attributes.values():
            copy.attributes[attribute.name] = attribute
        kept = {k: v for k, v in node.metadata_props.items() if k not in (BLOCK, ROLE)}
        copy.metadata_props.update({**kept, **copy.metadata_props})
        if (role := node.metadata_props.get(ROLE)) is not None:
            copy.metadata_props[ROLE] = _role(role, drafting)
        for old, new in zip(node.outputs, copy.outputs, strict=True):
            new.type = old.type
            if old.shape is not None:
                new.shape = ir.Shape([sizes.get(_symbol(d), d) for d in old.shape])
            known[old] = new

    def _weight(self, value: ir.Value | None) -> ir.Value:
        """A weight of the block, once in the target's graph."""
        assert value is not None
        assert value.const_value is not None, f"'{value.name}' is a weight"
        if value not in self._weights:
            name = free_name(self._emit.graph, f"{HEAD}.{value.name}")
            self._weights[value] = self._emit.initializer(name, tensor_of(value))
        return self._weights[value]


def _role(role: str, drafting: bool) -> str:
    """A node's stamp beside the target's own: its attention is lowered like any over a cache."""
    if role == "attention":
        return DRAFTED_ATTENTION if drafting else role
    return f"{HEAD}.{role}"


def _symbol(dim: int | ir.SymbolicDim) -> str:
    return "" if isinstance(dim, int) else dim.value or ""


def features_of(model: ir.Model) -> Port | None:
    """The output of a target that a head reads: the features made for it, or what its final norm
    gives."""
    ports = read_ports(model)
    made = [p for p in by_role(ports, FEATURES, "out") if p.owner == TARGET]
    final = [p for p in by_role(ports, "hidden", "out") if p.tap == "postnorm"]
    return next(iter([*made, *final]), None)
