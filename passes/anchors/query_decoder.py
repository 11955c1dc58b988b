"""What the inputs and outputs of a decoder of queries are: one product of queries with the features
of all places, told by what is made of what.

ProtoOcc (arXiv 2412.08774) averages prototypes from the features of voxels and adds stored ones; in
one pass each query gives class scores, and its product with the features a mask of all places.
Mask2Former (arXiv 2112.01527) combines scores and masks in the same way.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import onnx_ir as ir

from graftline.errors import CannotEvaluate, NotApplicable
from graftline.facts import QueryDecoderFacts
from graftline.passes.anchors.denoiser import AUXILIARY, PREDICTION
from graftline.passes.anchors.products import Places, Product, dependents_of, product_of, walk
from graftline.passes.anchors.roles import (
    FLOATS,
    OnePass,
    Role,
    declared_role,
    dims_of,
    inputs_of,
    mismatch,
    rank_of,
)
from graftline.passes.anchors.upsampling import LENGTHS, measure, opened
from graftline.passes.graph.meaning import DRAWS
from graftline.passes.graph.mismatch import Mismatch
from graftline.roles import CONDITION, LATENTS, SCORES

OF_PLACES = (4, 5)
"""Dimensions of features and of scores: [B, C, H, W] or [B, C, X, Y, Z]."""


@dataclass(frozen=True)
class _Scored:
    """An output [B, classes, places] that products with queries make, from the last one up."""

    classes: int
    products: tuple[Product, ...]

    @property
    def queries(self) -> int:
        """Of the product with the features."""
        return self.products[-1].rows


def find_query_decoder(graph: ir.Graph) -> OnePass | Mismatch:
    """Features [B, C, X, Y, Z] or [B, C, H, W], or images of several cameras [B, cameras, 3, H, W],
    with what conditions them, and scores of classes at every place [B, K, X, Y, Z] or [B, K, H, W]
    that products with queries make; or why the graph has none. Names do not count; of several such
    outputs a spec may say which."""
    scores = [v for v in graph.outputs if v.dtype in FLOATS and rank_of(v) in OF_PLACES]
    if not scores:
        return mismatch("no output is scores of places [B, K, H, W] or [B, K, X, Y, Z]",
                        graph.outputs)  # fmt: skip
    main = _features(inputs_of(graph))
    if isinstance(main, Mismatch):
        return main
    found = _main_output(graph, main, scores)
    if isinstance(found, Mismatch):
        return found
    output, scored = found
    rest = [v for v in inputs_of(graph) if v is not main]
    beside = [v for v in graph.outputs if v is not output]
    inputs = [Role(main, LATENTS, LATENTS)]
    inputs += [Role(v, CONDITION, f"{CONDITION}.{n}") for n, v in enumerate(rest)]
    others = [Role(v, AUXILIARY, f"{AUXILIARY}.{n}") for n, v in enumerate(beside)]
    facts = QueryDecoderFacts(scored.classes, scored.queries, len(dims_of(output)) - 2)
    return OnePass(facts, tuple(inputs), Role(output, SCORES, SCORES), tuple(others))


def _features(inputs: Sequence[ir.Value]) -> ir.Value | Mismatch:
    """The one input of most dimensions among floats of places."""
    found = [v for v in inputs if v.dtype in FLOATS and rank_of(v) in OF_PLACES]
    most = max((rank_of(v) or 0 for v in found), default=0)
    first = [v for v in found if rank_of(v) == most]
    if len(first) != 1:
        why = "its inputs are not one array of features or images, and conditions of fewer axes"
        return mismatch(why, first or inputs)
    if not isinstance(dims_of(first[0])[1], int):
        return mismatch("the number of the features' channels is not fixed", first)
    return first[0]


def _main_output(
    graph: ir.Graph, main: ir.Value, scores: Sequence[ir.Value]
) -> tuple[ir.Value, _Scored] | Mismatch:
    """The output that the graph is for: that of scores and masks before masks alone, and one that
    nothing drawn at random goes into before one with noise."""
    said = [v for v in graph.outputs if declared_role(v) == PREDICTION]
    if odd := [v for v in said if v not in scores]:
        return mismatch("the output that the spec names is not scores of places", odd)
    asked = said or scores
    read = _read(graph, main, asked)
    if isinstance(read, Mismatch):
        return read
    held = {v: one for v, one in zip(asked, read, strict=True) if isinstance(one, _Scored)}
    if not held:
        return next(one for one in read if isinstance(one, Mismatch))
    drawn = _drawn(graph)
    whole = [v for v, one in held.items() if len(one.products) > 1] or list(held)
    best = [v for v in whole if v not in drawn] or whole
    if len(best) > 1:
        why = "several outputs are scores by queries; name one as outputs.prediction of a spec"
        return mismatch(why, best)
    return best[0], held[best[0]]


def _read(
    graph: ir.Graph, main: ir.Value, outputs: Sequence[ir.Value]
) -> list[_Scored | Mismatch] | Mismatch:
    """How each of the outputs is made: at the first length of free axes at which it shows, since
    another number may happen to be that of the places."""
    at, ends = inputs_of(graph).index(main), [list(graph.outputs).index(v) for v in outputs]
    fixed = all(isinstance(d, int) for d in dims_of(main)[1:])
    found = dict[int, _Scored | Mismatch]()
    try:
        model = opened(graph)
        source, made = model.graph.inputs[at], model.graph.outputs
        given = dependents_of(model.graph, model.graph.inputs)
        own = dependents_of(model.graph, [source])
        for length in LENGTHS[: 1 if fixed else None]:
            sizes = measure(model.graph, source, length)
            for end in [n for n in ends if not isinstance(found.get(n), _Scored)]:
                places = Places.of(sizes, made[end], given, own)
                found[end] = places if isinstance(places, Mismatch) else _scored(places)
    except (NotApplicable, CannotEvaluate) as error:
        return mismatch(f"its shapes cannot be measured: {error}", [main])
    return [found[n] for n in ends]


def _scored(places: Places) -> _Scored | Mismatch:
    """The products above an output, the last first: of class scores with masks, and of queries with
    features; or of queries with features alone."""
    made = walk(places, places.output)
    last = made if isinstance(made, Mismatch) else product_of(places, made)
    if isinstance(last, Mismatch):
        return last
    products, above = [last], walk(places, last.features)
    if not isinstance(above, Mismatch):
        first = product_of(places, above)
        if isinstance(first, Product):
            products.append(first)
    if products[-1].features not in places.own:
        return Mismatch.at(last.node, "what its queries are multiplied with is not the features")
    return _Scored(places.shape[1], tuple(products))


def _drawn(graph: ir.Graph) -> set[ir.Value]:
    """All that random numbers go into."""
    made = [v for node in graph if node.op_type in DRAWS for v in node.outputs]
    return dependents_of(graph, made)
