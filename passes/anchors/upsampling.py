"""How many elements of its output a graph makes of one latent, found by measuring shapes."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from math import prod

import onnx_ir as ir

from graftline.errors import CannotEvaluate, NotApplicable
from graftline.passes.anchors.roles import dims_of, inputs_of, mismatch
from graftline.passes.canonical.opset.opset import open_graph
from graftline.passes.graph.meaning import World
from graftline.passes.graph.mismatch import Mismatch
from graftline.passes.graph.shapes.shapes import Measure

BATCH, OTHER = 2, 5
"""Rows, and what else is free and no axis of the latents."""
LENGTHS = (24, 32, 40)
"""Latents along an axis: multiples of what networks halve."""


@dataclass(frozen=True)
class Upsampling:
    """The output has `axes` axes along which one latent becomes `ratio` elements, and
    `channels`."""

    axes: int
    ratio: int
    channels: int


def opened(graph: ir.Graph) -> ir.Model:
    """A copy of a graph at opset 24, constants lifted. Raises NotApplicable."""
    model = ir.Model(graph.clone(), ir_version=10)
    open_graph(model)
    return model


def sizes(
    values: Iterable[ir.Value], main: ir.Value, length: int
) -> dict[ir.Value, tuple[int, ...]]:
    """Shapes of inputs with so many latents along each axis of `main`; what is free beside them is
    BATCH in front and OTHER elsewhere."""
    symbols = {str(d): length for d in dims_of(main)[1:] if not isinstance(d, int)}
    first = dims_of(main)[0]
    if not isinstance(first, int):
        symbols[str(first)] = BATCH
    free = {v: [d if isinstance(d, int) else symbols.get(str(d), OTHER) for d in dims_of(v)]
            for v in values}  # fmt: skip
    return {v: tuple(dims) for v, dims in free.items()}


def measure(graph: ir.Graph, main: ir.Value, length: int) -> Measure:
    """The shapes of an opened graph's values with so many places along each axis of `main`, None
    where they depend on numbers. Raises NotApplicable or CannotEvaluate."""
    return Measure(graph, World({}), inputs=sizes(inputs_of(graph), main, length))


def upsampling(graph: ir.Graph, main: ir.Value, axes: int) -> Upsampling | Mismatch:
    """Of a graph as it was exported, whose latents are `main`."""
    place = list(graph.inputs).index(main)
    try:
        model = opened(graph)
        latents = model.graph.inputs[place]
        found = [measure(model.graph, latents, n).of(model.graph.outputs[0]) for n in LENGTHS]
    except (NotApplicable, CannotEvaluate) as error:
        return mismatch(f"its shapes cannot be measured: {error}", [main])
    shapes = [s for s in found if s is not None]
    if len(shapes) < len(found):
        return mismatch("the size of its output depends on more than sizes", graph.outputs)
    lengths = [d for d in dims_of(main)[-axes:] if isinstance(d, int)]
    if lengths:
        return _of_fixed(shapes[0], lengths, axes, graph.outputs[0])
    return _ratio(shapes, axes, graph.outputs[0])


def _of_fixed(
    shape: tuple[int, ...], lengths: list[int], axes: int, output: ir.Value
) -> Upsampling | Mismatch:
    """By the one output shape of a graph whose latents are `lengths` long along their axes."""
    made = shape[-axes:]
    ratios = {have // want for have, want in zip(made, lengths, strict=False)}
    if len(lengths) < axes or len(shape) < axes + 2 or len(ratios) != 1:
        return mismatch("its output is not as many times as long along every axis", [output])
    ratio = ratios.pop()
    if ratio < 2 or any(have != ratio * want for have, want in zip(made, lengths, strict=True)):
        return mismatch("its output is not several times as long as its latents", [output])
    return Upsampling(axes, ratio, prod(shape[1:-axes]))


def _ratio(shapes: list[tuple[int, ...]], axes: int, output: ir.Value) -> Upsampling | Mismatch:
    """By output shapes for LENGTHS latents along every axis."""
    step = LENGTHS[1] - LENGTHS[0]
    grown = [b - a for a, b in zip(shapes[0], shapes[1], strict=True)]
    again = [b - a for a, b in zip(shapes[1], shapes[2], strict=True)]
    if again != grown or any(n % step for n in grown):
        return mismatch("its output is not longer by a whole number for each latent", [output])
    along = [axis for axis, n in enumerate(grown) if n]
    rank = len(grown)
    if along != list(range(rank - axes, rank)) or len({grown[a] for a in along}) != 1:
        return mismatch("its output does not grow along the axes of its latents alone", [output])
    if (ratio := grown[-1] // step) < 2:
        return mismatch("its output is no longer than its latents", [output])
    return Upsampling(axes, ratio, prod(shapes[0][1:-axes]))
