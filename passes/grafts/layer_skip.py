"""layer-skip: a route through a model - without some of its blocks, or their attention or MLP."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import onnx_ir as ir

from graftline.errors import GraftlineError, LawBroken, NotApplicable
from graftline.evaluate import Array, Feed
from graftline.facts import decoder_facts, write_facts
from graftline.law import Evidence
from graftline.passes.anchors.anchors import block_outputs
from graftline.passes.anchors.residual import (
    Span,
    Terms,
    block_terms,
    read_elsewhere,
    spans,
)
from graftline.passes.anchors.work import block_work, numbers
from graftline.passes.graph.cut import (
    drop_ports,
    elements,
    hand_over,
    keep_outputs,
    sizes_of_caches,
)
from graftline.passes.graph.emit import Emit, new_input, new_output
from graftline.passes.graph.mismatch import Mismatch, refusal
from graftline.passes.laws.compare import Comparison, activation_dtype, written_slots
from graftline.passes.pipeline.graft import BLOCK, ROLE, Evaluate, Graft, Law, WeightFreeLaw
from graftline.ports import ROUTERS, Port, by_role, read_ports
from graftline.route import MANY, MIDDLE, SPREAD, Route, blocks_for, blocks_of, text_of

STREAM = "stream"
"""The residual stream where the law takes a host apart."""


def route(
    graft: Graft, before: ir.Model, after: ir.Model, feed: Feed, evaluate: Evaluate
) -> Evidence:
    """The graph gives what the host gives where the stream passes by each skipped block and nothing
    is added for each skipped part; and it has no cache of an attention that it skips."""
    assert isinstance(graft, LayerSkip)
    way, ports = graft.route(before), read_ports(after)
    if kept := [p.name for p in ports if p.state and p.layer in way.attention]:
        by = "is a cache of an attention that is skipped"
        raise LawBroken(graft.name(), "route", f"'{kept[0]}'", by)
    expected = route_outputs(before, way, feed, evaluate)
    got = evaluate(after, graft.neutral(feed, after))
    comparison = Comparison(graft.name(), "route", activation_dtype(after))
    got, expected = (written_slots(side, ports, feed) for side in (got, expected))
    worst = comparison.outputs(got, expected, ports)
    parts = f"{len(way.attention)} attentions and {len(way.mlp)} MLPs of {way.count} blocks"
    what = f"{len(expected)} outputs equal the host's without {parts}"
    return Evidence(what, worst, comparison.limit)


def work(graft: Graft, before: ir.Model, after: ir.Model) -> Evidence:
    """A step reads no more numbers of matrices than before; for a speed-up as few as that asks for,
    but for half a block."""
    assert isinstance(graft, LayerSkip)
    blocks, head = block_work(before.graph)
    left = numbers(n for n in after.graph if n.metadata_props.get(BLOCK)) / (sum(blocks) + head)
    due, most = 1.0, 0.0
    if graft.speedup:
        due, most = 1 / graft.speedup, 0.501 * max(blocks) / (sum(blocks) + head)
    if left > due + most or (graft.speedup and left < due - most):
        by = f"read {left:.3f} of what the host's do, for {due:.3f}"
        raise LawBroken(graft.name(), "work", "the matrices of a step", by)
    what = f"a step reads {left:.3f} of the host's matrices, for {due:.3f}"
    return Evidence(what, abs(left - due), most) if graft.speedup else Evidence(what)


def route_outputs(
    host: ir.Model,
    way: Route,
    feed: Feed,
    evaluate: Evaluate,
    leaves: Callable[[range, Array], Array] = lambda run, stream: stream,
) -> Feed:
    """What a host would answer on a route, computed without rewiring it: the stream is read before
    each run of skipped blocks, and what `leaves` says of it is fed in behind it: as it is, unless
    another is given. What the skipped part of another block adds is multiplied by zero."""
    found, behind = Feed(), Entry(range(0), None)
    for run in [*_runs(way.whole), range(way.count, way.count)]:
        part = host.clone()
        _silence(part, way)
        fed = behind.feed(part, feed)
        names = [p.name for p in _answers(host, way, behind.blocks, run)]
        if run:
            entered = _spans(part.graph)[run.start].start
            shape = ["B", "N", decoder_facts(host).hidden]
            new_output(part.graph, entered, STREAM, entered.dtype or ir.DataType.FLOAT, shape)
            names.append(STREAM)
        keep_outputs(part, names)
        found |= evaluate(part, fed)
        stream = found.pop(STREAM, None)
        behind = Entry(run, None if stream is None else leaves(run, stream))
    return found


@dataclass(frozen=True)
class Entry:
    """Where a part of a host begins: behind `blocks`, which were skipped, with the `stream` that
    entered them; or, where there is none, with the tokens."""

    blocks: range
    stream: Array | None

    def feed(self, part: ir.Model, feed: Feed) -> Feed:
        """Let the part begin there; what it is fed."""
        if self.stream is None:
            return feed
        ends = block_outputs(part.graph)
        dtype = ends[self.blocks[-1]].dtype or ir.DataType.FLOAT
        name = f"{STREAM}.in"
        given = new_input(part.graph, name, dtype, ["B", "N", self.stream.shape[-1]])
        for block in self.blocks:
            hand_over(ends[block], given)
        return {**feed, name: self.stream}


def _answers(host: ir.Model, way: Route, behind: range, run: range) -> Iterator[Port]:
    """The outputs of the blocks from `behind` up to `run`, and at the end those of no block; not
    the caches of what is skipped, nor what routers of the whole say."""
    for port in (p for p in read_ports(host) if p.role != ROUTERS):
        layer = way.count if port.layer is None else port.layer
        within = behind.start <= layer and (layer < run.start or not run)
        if port.direction == "out" and within and not (port.state and layer in way.attention):
            yield port


def _runs(blocks: Collection[int]) -> list[range]:
    """Blocks that follow one another."""
    found: list[range] = []
    for block in sorted(blocks):
        if found and found[-1].stop == block:
            found[-1] = range(found[-1].start, block + 1)
        else:
            found.append(range(block, block + 1))
    return found


def _silence(model: ir.Model, way: Route) -> None:
    """Multiply by zero what the skipped parts of blocks add to the stream."""
    for span in _spans(model.graph):
        if not any(way.way(span.block)) or span.block in way.whole:
            continue
        terms = _terms(span)
        for term in _skipped(terms, span, way):
            for node in [n for n in term.consumers() if n in terms.sums]:
                emit = Emit(model.graph, "route", node)
                dtype = (term.dtype or ir.DataType.FLOAT).numpy()
                zero = emit.op("Mul", [term, emit.const(f"zero.{dtype}", 0, dtype)])
                node.replace_input_with(list(node.inputs).index(term), zero)


@dataclass(frozen=True)
class LayerSkip(Graft):
    """Leaves out the blocks `layers`, the attention of the blocks `attention`, and the MLP of the
    blocks `mlp`: a skipped block or part is the identity on the residual stream (self-speculation
    by layer skipping, arXiv 2309.08168); or as many blocks as `speedup` needs.

    Blocks are 0-based numbers and ranges joined by `+`, as `3+10-20`; `middle` is every fourth of
    the middle half; without any the graph stays as it is. With `speedup` 1.5 the blocks follow from
    the numbers in the matrices that a step reads: so many that it reads two thirds of them. `order`
    spread: evenly between the first and the last, as Unified Layer Skipping (arXiv 2404.06954) has
    it; lower: from the second upwards, as SkipDecode (arXiv 2307.02628).

    What is skipped is not computed, its weights leave the graph, and a skipped attention has no
    cache; nor do routers say any more which blocks are needed. The others keep the ports and the
    numbers that they have in the host, so that the graph works on the host's own caches. It is a
    graph for each route, and not an `If` around each block: a route is chosen for many steps, all
    graphs map one copy of the weights, and an `If` that skips a block has to copy its stream and
    its caches to its outputs.

    Answers other logits than the host by design; its own law says which.
    """

    laws: ClassVar[tuple[Law, ...]] = (route,)
    weight_free: ClassVar[tuple[WeightFreeLaw, ...]] = (work,)
    numeric: ClassVar[bool] = False

    layers: str = ""
    attention: str = ""
    mlp: str = ""
    speedup: float = 0.0
    order: str = SPREAD

    def route(self, model: ir.Model) -> Route:
        """Which parts of that host it leaves out. Raises GraftlineError for what it lacks."""
        count = len(block_outputs(model.graph))
        if self.speedup:
            if self.layers or self.attention or self.mlp:
                raise GraftlineError("speedup chooses the blocks; name none beside it")
            chosen = blocks_for(self.speedup, self.order, *block_work(model.graph))
            return Route(count, chosen, chosen)
        return Route.of(count, self.layers, self.attention, self.mlp)

    def requires(self, model: ir.Model) -> None:
        if not block_outputs(model.graph):
            raise NotApplicable("layer-skip needs stamped blocks; run anchors first")
        try:
            way = self.route(model)
        except GraftlineError as error:
            raise NotApplicable(f"{self}: {error}") from error
        found = spans(model.graph)
        if isinstance(found, Mismatch):
            raise refusal("layer-skip finds no single residual stream", [found])
        if [span.block for span in found] != list(range(way.count)):
            raise NotApplicable(f"{self}: this graph skips blocks already; name all in one pass")
        for span in found:
            if any(way.way(span.block)):
                check_bypass(model.graph, span, way)
        sizes_of_caches(model, self.dropped(model), self.name())

    def apply(self, model: ir.Model) -> None:
        way, gone = self.route(model), self.dropped(model)
        facts, size = decoder_facts(model), elements(model)
        for span in reversed(_spans(model.graph)):  # so that a start is still what blocks read
            if span.block in way.whole:
                hand_over(span.end, span.start)
            elif any(way.way(span.block)):
                terms = _terms(span)
                _leave_out(span, terms, frozenset(_skipped(terms, span, way)))
        for node, cache in sizes_of_caches(model, gone, self.name()):
            node.replace_input_with(0, cache)
        drop_ports(model, gone)
        left = max(facts.parameters - (size - elements(model)), 0)
        layers = way.count - len(way.whole)
        write_facts(model, replace(facts, layers=layers, parameters=left))

    def dropped(self, before: ir.Model) -> frozenset[str]:
        skipped, ports = self.route(before).attention, read_ports(before)
        caches = (p for p in ports if p.state and p.layer in skipped)
        return frozenset(p.name for p in (*caches, *by_role(ports, ROUTERS)))

    def neutral(self, feed: Feed, after: ir.Model) -> Feed:
        left = {value.name for value in after.graph.inputs}
        return {name: array for name, array in feed.items() if name in left}

    def apart(self, before: ir.Model) -> Mapping[int, tuple[bool, bool]]:
        way = self.route(before)
        return {block: way.way(block) for block in range(way.count)}

    def within(self, blocks: int) -> LayerSkip:
        """Skips of a small host what it names there, or where that is nothing the last block, the
        last attention and the first MLP; and never all attentions. For a speed-up the last block,
        too."""
        if self.speedup:
            return LayerSkip(text_of({blocks - 1} - {0}))
        last = blocks - 1
        layers, attention = (
            _within(self.layers, blocks, last),
            _within(self.attention, blocks, last),
        )
        mlp = _within(self.mlp, blocks, 0)
        if len(layers | attention) == blocks:
            layers, attention = layers - {0}, attention - {0}
        return LayerSkip(text_of(layers), text_of(attention), text_of(mlp))


def _within(text: str, blocks: int, other: int) -> frozenset[int]:
    """Which of the first blocks are meant, or where none is among so many, the `other` one."""
    if text in ("", MIDDLE):
        return blocks_of(text, blocks)
    meant = blocks_of(text, MANY)
    return frozenset(b for b in meant if b < blocks) or frozenset({other})


def check_bypass(graph: ir.Graph, span: Span, way: Route, who: str = "layer-skip") -> None:
    """Raise NotApplicable unless the stream can pass by what is skipped of a block."""
    what = f"{who} cannot skip block {span.block}"
    widths = [_width(value) for value in (span.start, span.end)]
    if widths[0] != widths[1]:
        told = [f"{v.name} of {w}" for v, w in zip((span.start, span.end), widths, strict=True)]
        raise NotApplicable(f"{what}: the stream leaves it in another type or width", told)
    if others := read_elsewhere(graph, span):
        why = "other blocks read more of it than the stream that leaves it"
        raise refusal(what, [Mismatch.over(others, why)])
    if span.block not in way.whole and isinstance(terms := block_terms(span), Mismatch):
        part = "attention" if span.block in way.attention else "MLP"
        what = f"layer-skip cannot skip the {part} of block {span.block} alone"
        raise refusal(f"{what}; name the block in layers", [terms])


def _width(value: ir.Value) -> str:
    """Type and last dimension, as one word."""
    dtype = "?" if value.dtype is None else value.dtype.name.lower()
    return f"{dtype}[{value.shape[-1] if value.shape else '?'}]"


def _spans(graph: ir.Graph) -> Sequence[Span]:
    found = spans(graph)
    assert not isinstance(found, Mismatch), "was found when the graph was looked at"
    return found


def _terms(span: Span) -> Terms:
    found = block_terms(span)
    assert not isinstance(found, Mismatch), "was found when the graph was looked at"
    return found


def _skipped(terms: Terms, span: Span, way: Route) -> tuple[ir.Value, ...]:
    """The terms of a block that a route leaves out."""
    attention, mlp = way.way(span.block)
    return (terms.attention if attention else ()) + (terms.mlp if mlp else ())


def _leave_out(span: Span, terms: Terms, skipped: frozenset[ir.Value]) -> None:
    """Take terms out of the sum that a block ends in; what is left is its end."""
    end = _rest(span.end, terms, skipped)
    maker = None if end is None else end.producer()
    assert maker is not None, "a block of which a part is kept ends in a sum"
    maker.metadata_props[ROLE] = "residual"


def _rest(value: ir.Value, terms: Terms, skipped: frozenset[ir.Value]) -> ir.Value | None:
    """What is left of a sum without some of its terms, in its place for all its readers; None:
    nothing."""
    node = value.producer()
    if value in skipped:
        return None
    if node is None or node not in terms.sums:
        return value
    parts = (_rest(part, terms, skipped) for part in list(node.inputs) if part is not None)
    left = [part for part in parts if part is not None]
    if len(left) > 1:
        return value
    if left:
        hand_over(value, left[0])
    return left[0] if left else None
