"""The laws every graft is held to: typed, wellformed, interface, neutral; then its own.

The numeric law compares the graph before and after on the same seeded feed, with the graft's
neutral values for what it added.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from graftline.errors import LawBroken
from graftline.evaluate import Feed, Prepared, prepare
from graftline.law import Evidence, LawRow
from graftline.passes.anchors.products import dependents_of
from graftline.passes.anchors.reduce import block_kinds
from graftline.passes.grafts.kv_cache import carried_caches
from graftline.passes.grafts.tree_mask import Grove, causal_mask, step_shape
from graftline.passes.graph.meaning import DRAWS
from graftline.passes.graph.ports import roles_of
from graftline.passes.graph.shapes.whole import infer
from graftline.passes.laws.compare import Comparison, activation_dtype, written_slots
from graftline.passes.pipeline.graft import Evaluate, Graft
from graftline.ports import read_ports
from graftline.roles import Roles

STRUCTURAL = ("typed", "wellformed", "interface", "alike")
"""Laws that hold after every pass, on the whole graph."""


@dataclass
class Memo:
    """An evaluator that remembers: laws run the same graph on many feeds, and on one more than
    once."""

    prepared: list[tuple[ir.Model, Prepared]] = field(
        default_factory=list[tuple[ir.Model, Prepared]]
    )
    known: list[tuple[ir.Model, Feed, Feed]] = field(
        default_factory=list[tuple[ir.Model, Feed, Feed]]
    )

    def __call__(self, model: ir.Model, feed: Feed) -> Feed:
        for other, fed, outputs in self.known:
            if other is model and _equal(fed, feed):
                return dict(outputs)
        outputs = self._prepared(model)(feed)
        held = {name: array.copy() for name, array in feed.items()}  # laws write into theirs
        self.known.append((model, held, outputs))
        return dict(outputs)

    def _prepared(self, model: ir.Model) -> Prepared:
        for other, evaluate in self.prepared:
            if other is model:
                return evaluate
        self.prepared.append((model, prepare(model)))
        return self.prepared[-1][1]

    def renamed(self, model: ir.Model, copy: ir.Model) -> None:
        """`model` is about to change and `copy` stays as it is; other runs are forgotten."""
        self.known = [(copy, fed, out) for other, fed, out in self.known if other is model]
        self.prepared = [(copy, run) for other, run in self.prepared if other is model]


def _equal(one: Feed, other: Feed) -> bool:
    return one.keys() == other.keys() and all(np.array_equal(one[k], other[k]) for k in one)


@dataclass(frozen=True)
class Host:
    """What is noted of a graph before a graft, for the laws that need no copy of it."""

    inputs: frozenset[str]
    outputs: frozenset[str]
    kinds: Mapping[int, Hashable]
    """What each block computes, and how the graft treats it where it does not treat all alike."""

    @classmethod
    def of(cls, graft: Graft, before: ir.Model) -> Host:
        """All that the graft does not say it drops."""
        gone, graph = graft.dropped(before), before.graph
        inputs = frozenset(v.name or "" for v in graph.inputs)
        outputs = frozenset(v.name or "" for v in graph.outputs)
        apart = graft.apart(before)
        kinds = {block: (kind, apart.get(block)) for block, kind in block_kinds(graph).items()}
        return cls(inputs - gone, outputs - gone - graft.replaced(before), kinds)


def infer_shapes(model: ir.Model, who: str = "the graph") -> None:
    """ONNX shape inference in place; weights are neither read nor copied.

    Raises LawBroken where ONNX finds types or shapes that contradict each other.
    """
    if reason := infer(model, strict=True):
        raise LawBroken(who, "typed", "shape inference", reason)


def typed(graft: Graft, after: ir.Model) -> Evidence:
    """Every graph input, output and initializer has a type."""
    graph = after.graph
    values = [*graph.inputs, *graph.outputs, *graph.initializers.values()]
    for value in values:
        if value.dtype is None:
            raise LawBroken(graft.name(), "typed", f"'{value.name}'", "has no element type")
    return Evidence(f"{len(values)} interface values and weights are typed")


def wellformed(graft: Graft, after: ir.Model) -> Evidence:
    """Names are unique, every value is made before it is read, opsets are declared."""
    seen: set[str] = {v.name or "" for v in after.graph.inputs} | set(after.graph.initializers)
    for node in after.graph:
        if node.domain not in after.opset_imports:
            raise LawBroken(
                graft.name(), "wellformed", f"'{node.name}'", f"no opset for '{node.domain}'"
            )
        for value in node.inputs:
            if value is not None and (value.name or "") not in seen:
                raise LawBroken(
                    graft.name(), "wellformed", f"'{value.name}'", "is read before it is made"
                )
        for value in node.outputs:
            name = value.name or ""
            if name and name in seen:
                raise LawBroken(graft.name(), "wellformed", f"'{name}'", "is made twice")
            seen.add(name)
    for value in after.graph.outputs:
        if (value.name or "") not in seen:
            raise LawBroken(
                graft.name(), "wellformed", f"'{value.name}'", "is an output that no node makes"
            )
    return Evidence(f"{len(after.graph)} nodes in order, names unique")


def interface(graft: Graft, host: Host, after: ir.Model) -> Evidence:
    """The ports are exactly the graph's inputs and outputs, and say their dtypes; every input and
    output of the host is still there, but those that the graft says it drops."""
    graph = after.graph
    for side, wanted, values in (
        ("inputs", host.inputs, graph.inputs), ("outputs", host.outputs, graph.outputs)
    ):  # fmt: skip
        if lost := sorted(wanted - {v.name or "" for v in values}):
            raise LawBroken(graft.name(), "interface", side, f"{', '.join(lost)} gone")
    for direction, values in (("in", graph.inputs), ("out", graph.outputs)):
        actual = {v.name: v.dtype.numpy().name if v.dtype else "?" for v in values}
        stated = {p.name: p.dtype for p in read_ports(after) if p.direction == direction}
        if actual != stated:
            odd = sorted(set(actual.items()) ^ set(stated.items()), key=str)
            raise LawBroken(
                graft.name(), "interface", f"{direction}puts", f"ports differ at {odd[:4]}"
            )
    return Evidence(f"{len(read_ports(after))} ports match the graph")


def alike(graft: Graft, host: Host, after: ir.Model) -> Evidence:
    """Blocks that computed the same before, each with its own weights, still do: what a graft does
    to one it does to all, or to all that it says it treats so. So a law that holds on a block of
    each kind holds on every block."""
    was, now = host.kinds, block_kinds(after.graph, apart=False)
    first: dict[Hashable, int] = {}
    for block in [b for b in now if b in was]:
        other = first.setdefault(was[block], block)
        if now[block] != now[other]:
            by = "; ".join(sorted(str(row) for row in _difference(now[block], now[other]))[:2])
            raise LawBroken(graft.name(), "alike", f"block {block}", f"not as block {other}: {by}")
    return Evidence(f"{len(now)} blocks of {len(set(now.values()))} kinds")


def _difference(one: Hashable, other: Hashable) -> frozenset[Hashable]:
    assert isinstance(one, frozenset)
    assert isinstance(other, frozenset)
    return one ^ other


def neutral(
    graft: Graft, before: ir.Model, after: ir.Model, feed: Feed, evaluate: Evaluate
) -> Evidence:
    """Under neutral inputs the grafted graph computes the host's outputs, ports it kept included:
    those of one call of it, or of what the graft says it stands for.

    Of a cache only the written slots count: what the others hold nobody may see.
    """
    gone = graft.dropped(before)
    host = graft.reference(before, feed, evaluate)
    was = {k: v for k, v in host.items() if k not in gone}
    now = graft.carried(evaluate(after, graft.neutral(feed, after)), after)
    ports = read_ports(before)
    was, now = (written_slots(side, ports, feed) for side in (was, now))
    comparison = Comparison(graft.name(), "neutral", activation_dtype(after))
    if graft.numeric:
        try:
            worst = comparison.outputs(now, was, ports)
        except LawBroken as error:
            raise _drawn(error, before) from error
        what = f"{len(was)} outputs are the host's"
        return Evidence(what, worst, comparison.limit)
    exact = {p.name for p in ports if p.compare == "equal"}
    floats = [k for k in was if k in now and k not in exact]
    worst = max(comparison.measure(k, now[k], was[k]) for k in floats)
    return Evidence(f"{len(floats)} outputs beside the host's", worst, status="measured")


def _drawn(error: LawBroken, host: ir.Model) -> LawBroken:
    """The error, or what is to be done where its output is drawn at random in the host."""
    noise = (v for n in host.graph if n.op_type in DRAWS for v in n.outputs)
    random = {f"'{v.name}'" for v in dependents_of(host.graph, noise) if v.is_graph_output()}
    if error.value not in random:
        return error
    by = f"{error.by}: it is drawn at random; remove it with --passes prune-branch"
    return LawBroken(error.who, error.law, error.value, by)


def trees(
    graft: Graft, before: ir.Model, after: ir.Model, feed: Feed, evaluate: Evaluate
) -> Evidence:
    """Trees after pasts of different lengths, one beside the other, give the host's logits."""
    roles = roles_of(before)
    step, slots = Grove.of(feed, roles), feed[roles.inputs["mask"]].shape[-1]
    start = feed[roles.inputs["write_index"]]
    fed = step.past(feed) | roles.feed(mask=causal_mask(start, step.longest, slots))
    filled = evaluate(before, _all_rows(fed, roles))
    fed = step.rows(feed) | carried_caches(before, filled) | step.ports(slots)
    fed, logits = _all_rows(fed, roles), roles.outputs["logits"]
    expected = evaluate(before, fed)[logits]
    got = graft.carried(evaluate(after, graft.neutral(fed, after)), after)[logits]
    comparison = Comparison(graft.name(), "trees", activation_dtype(after))
    what = f"{len(step.trees)} trees after {step.lengths.tolist()} rows give the host's logits"
    if graft.numeric:
        return Evidence(what, comparison.output(logits, got, expected), comparison.limit)
    gap = comparison.measure(logits, got, expected)
    return Evidence(f"{what}, nearly", gap, status="measured")


def _all_rows(feed: Feed, roles: Roles) -> Feed:
    """`feed` asking, where it asks, for the logits of all its rows."""
    batch, count = step_shape(feed, roles)
    return feed | roles.feed(rows=np.tile(np.arange(count, dtype=np.int64), (batch, 1)))


def check(
    graft: Graft,
    host: Host,
    before: ir.Model | None,
    after: ir.Model,
    feed: Feed | None,
    evaluate: Evaluate,
) -> list[LawRow]:
    """Hold one graft to its laws. `before` is a copy of the graph as it was, which the structural
    laws do not need. With a feed the numeric laws run; without, those that need no weight."""
    rows: list[LawRow] = []

    def hold(law: str, found: Evidence) -> None:
        rows.append(LawRow.of(str(graft), law, found))

    hold("typed", typed(graft, after))
    hold("wellformed", wellformed(graft, after))
    hold("interface", interface(graft, host, after))
    hold("alike", alike(graft, host, after))
    if before is None:
        return rows
    if feed is None:
        for law in graft.weight_free:
            hold(_name(law), law(graft, before, after))
        return rows
    hold("neutral", neutral(graft, before, after, feed, evaluate))
    mask = roles_of(before).inputs.get("mask")
    if mask in feed and mask not in graft.dropped(before):
        hold("trees", trees(graft, before, after, feed, evaluate))
    for law in graft.laws:
        hold(_name(law), law(graft, before, after, feed, evaluate))
    return rows


def _name(law: Callable[..., Evidence]) -> str:
    return law.__name__.replace("_", "-")
