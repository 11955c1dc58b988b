"""The receptive fields of an output, and the part of a graph in which they are finite."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from graftline.errors import CannotEvaluate, NotApplicable
from graftline.evaluate import Array
from graftline.passes.anchors.fields.operators import states_of
from graftline.passes.anchors.fields.span import Blocked, Span, step_of
from graftline.passes.anchors.fields.walk import State, Walk
from graftline.passes.graph.meaning import World, label, label_value, type_of
from graftline.passes.graph.shapes.inference import Shape
from graftline.passes.graph.shapes.shapes import Measure
from graftline.receptive_field import ReceptiveField

LENGTHS = (48, 80)
"""Latents along the axis at which shapes are measured."""
OTHER = 32
"""Latents along another axis."""


@dataclass(frozen=True)
class Part:
    """The nodes between the `source`, a value, and the output. `beside` are inputs that they read,
    of which those in `along` follow the source along its axes."""

    source: ir.Value
    nodes: tuple[ir.Node, ...]
    beside: tuple[ir.Value, ...] = ()
    along: tuple[ir.Value, ...] = ()


def part_from(source: ir.Value, output: ir.Value) -> Part | Blocked:
    """The part of a graph between a value and the output."""
    nodes, seen, inputs = set[ir.Node](), {source}, list[ir.Value]()
    todo = [output]
    while todo:
        value = todo.pop()
        if value in seen:
            continue
        seen.add(value)
        if (node := value.producer()) is not None:
            nodes.add(node)
            todo += [v for v in node.inputs if v is not None]
        elif value.const_value is None:
            inputs.append(value)
    if not any(v is source for node in nodes for v in node.inputs):
        return Blocked(label_value(output), f"it is not made of {source.name}")
    maker = output.producer()
    order = [n for n in (maker.graph if maker is not None else None) or () if n in nodes]
    shape = [] if source.shape is None else list(source.shape)[1:]
    open_dims = {str(d) for d in shape if not isinstance(d, int)}
    along = [
        v
        for v in inputs
        if v.shape is not None and any(str(d) in open_dims for d in list(v.shape)[1:])
    ]
    return Part(source, tuple(order), tuple(inputs), tuple(along))


def receptive_fields(
    part: Part, output: ir.Value, axes: Iterable[int], channels: Mapping[int, int]
) -> tuple[ReceptiveField, ...] | Blocked:
    """The field along each of `axes` of the source, whose other sizes are `channels` by axis; or
    the node that makes it infinite."""
    found: list[ReceptiveField] = []
    for axis in axes:
        one = _along(part, output, axis, channels)
        if isinstance(one, Blocked):
            return one
        found.append(one)
    return tuple(found)


def _along(
    part: Part, output: ir.Value, axis: int, channels: Mapping[int, int]
) -> ReceptiveField | Blocked:
    found = walked(part, axis, channels)
    if isinstance(found, Blocked):
        return found
    state = found.state(output)
    if isinstance(state, Blocked):
        return state
    if not isinstance(state, Span):
        return Blocked(label_value(output), "it does not follow the latents")
    if state.blocked is not None:
        return state.blocked
    if state.ratio.denominator > 1:
        return Blocked(
            label_value(output), f"{state.ratio} elements for each latent are no whole number"
        )
    step = step_of(s for s in found.states.values() if isinstance(s, Span))
    return ReceptiveField(
        axis, state.axis, int(state.ratio), state.extra, state.left, state.right, step
    )


def walked(part: Part, axis: int, channels: Mapping[int, int]) -> Walk | Blocked:
    """A part walked along one axis of the source, or why its shapes are not known."""
    sizes = {n: sizes_of(part, axis, n, channels) for n in LENGTHS}
    sources = {v: len(sizes[LENGTHS[0]][v]) - len(sizes[LENGTHS[0]][part.source]) + axis
               for v in (part.source, *part.along)}  # fmt: skip
    try:
        return walk(part.nodes, sources, sizes)
    except (CannotEvaluate, NotApplicable) as error:
        return Blocked(label_value(part.source), str(error))


def walk(
    nodes: Iterable[ir.Node],
    sources: Mapping[ir.Value, int],
    sizes: Mapping[int, Mapping[ir.Value, Shape]],
) -> Walk:
    """Walk `nodes`. `sources` are the latents, and what is as long, with their axis; `sizes` are
    the shapes of everything the nodes read that they do not make, by number of latents, of two."""
    order = list(nodes)
    first, second = sizes
    measures = [_measure(order, of) for of in sizes.values()]
    states: dict[ir.Value, State] = {v: Span(axis) for v, axis in sources.items()}
    found = Walk(states, (measures[0], measures[1]), (first, second))
    for node in order:
        try:
            made = states_of(found, node)
        except (CannotEvaluate, NotApplicable) as error:
            made = [Blocked(label(node), str(error))] * len(node.outputs)
        states.update(zip(node.outputs, made, strict=True))
    return found


def measured(part: Part, axis: int, length: int, channels: Mapping[int, int]) -> Measure:
    """The shapes of a part's values with so many latents along the axis."""
    return _measure(part.nodes, sizes_of(part, axis, length, channels))


def _measure(nodes: Iterable[ir.Node], sizes: Mapping[ir.Value, Shape]) -> Measure:
    return Measure(nodes, World({v: _blank(v, shape) for v, shape in sizes.items()}))


def _blank(value: ir.Value, shape: Shape) -> Array:
    """A stand-in of that shape, which takes no memory."""
    return np.broadcast_to(np.zeros((), type_of(value)), shape)


def sizes_of(
    part: Part, axis: int, length: int, channels: Mapping[int, int]
) -> dict[ir.Value, Shape]:
    """Shapes of what the part reads with so many latents along the axis."""
    shape = part.source.shape
    rank = len(shape) if shape is not None else 0
    own = [channels.get(i, OTHER) for i in range(rank)]
    own[axis] = length
    symbols = {str(d): n for d, n in zip(shape or (), own, strict=True) if not isinstance(d, int)}
    found = {part.source: tuple(own)}
    for value in part.beside:
        dims = list(value.shape or ())
        found[value] = tuple(d if isinstance(d, int) else symbols.get(str(d), 5) for d in dims)
    return found


def cuts(output: ir.Value) -> Iterator[ir.Value]:
    """Values that everything goes through which the output is made of, from the output on."""
    graph = output.graph
    assert graph is not None
    place = {node: i for i, node in enumerate(graph)}
    fed = set(graph.inputs)  # what depends on an input: constants stop nobody
    for node in graph:
        if any(v in fed for v in node.inputs):
            fed.update(node.outputs)
    frontier = {output}
    while makers := [n for v in frontier if (n := v.producer()) is not None]:
        last = max(makers, key=place.__getitem__)
        frontier -= set(last.outputs)
        frontier |= {v for v in last.inputs if v is not None and v in fed}
        if len(frontier) == 1 and not frontier & set(graph.inputs):
            yield from frontier
