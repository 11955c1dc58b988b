"""Operators that slide along the axis: convolutions, pools, resizing, pads and slices."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from fractions import Fraction
from math import ceil, floor

import onnx_ir as ir

from graftline.passes.anchors.fields.broadcast import elementwise
from graftline.passes.anchors.fields.span import Blocked, Reach, Span
from graftline.passes.anchors.fields.walk import BOTH, State, Walk
from graftline.passes.graph.meaning import constant, label


def _first(walk: Walk, node: ir.Node) -> Span | Blocked:
    """The span of a node's first operand, which alone may follow the latents."""
    if stop := [s for v in node.inputs[1:] if (s := walk.state(v)) is not None]:
        first = next((s for s in stop if isinstance(s, Blocked)), None)
        return first or Blocked(label(node), "its weights or sizes are made of the latents")
    state = walk.state(node.inputs[0])
    assert isinstance(state, Span)
    return state


def sliding(walk: Walk, node: ir.Node, place: int) -> tuple[int, int, int, int, int]:
    """(kernel with its gaps, stride, pads in front and behind, whether pads are counted up) along
    one spatial dimension."""
    kernel = node.attributes.get_ints("kernel_shape") or walk.shape(node.inputs[1])[2:]
    rank = len(kernel)
    strides = node.attributes.get_ints("strides") or [1] * rank
    gaps = node.attributes.get_ints("dilations") or [1] * rank
    pads = node.attributes.get_ints("pads") or [0] * 2 * rank
    auto = node.attributes.get_string("auto_pad", "NOTSET") or "NOTSET"
    wide, stride = (kernel[place] - 1) * gaps[place] + 1, strides[place]
    front, behind = pads[place], pads[place + rank]
    if auto in ("SAME_UPPER", "SAME_LOWER"):
        total = max(wide - stride, 0)
        front = total // 2 if auto == "SAME_UPPER" else -(-total // 2)
        behind = total - front
    elif auto == "VALID":
        front = behind = 0
    up = node.attributes.get_int("ceil_mode", 0) or 0
    return (wide, stride, front, behind, up)


def convolve(walk: Walk, node: ir.Node) -> State:
    """Conv and pools: element o reads `wide` elements from o * stride - front on."""
    span = _first(walk, node)
    if isinstance(span, Blocked):
        return span
    if span.axis < 2:
        return span.stopped(Blocked(label(node), "it sums over the axis"))
    wide, stride, front, behind, up = sliding(walk, node, span.axis - 2)
    if _is_same(node) and span.extra % stride:
        return span.stopped(Blocked(label(node), "its padding follows from the size"))
    room = span.extra + front + behind - wide
    extra = (ceil(Fraction(room, stride)) if up else room // stride) + 1
    return Reach(1, stride, ((-front, wide - front),)).of(span, extra)


def transpose_convolve(walk: Walk, node: ir.Node) -> State:
    """ConvTranspose: element i writes `wide` elements from i * stride - front on."""
    span = _first(walk, node)
    if isinstance(span, Blocked):
        return span
    if span.axis < 2:
        return span.stopped(Blocked(label(node), "it sums over the axis"))
    if _is_same(node) or node.attributes.get_ints("output_shape"):
        return span.stopped(Blocked(label(node), "its padding follows from the size"))
    place = span.axis - 2
    wide, stride, front, behind, _ = sliding(walk, node, place)
    more = node.attributes.get_ints("output_padding") or [0] * (place + 1)
    extra = (span.extra - 1) * stride + wide + more[place] - front - behind
    phases = tuple(
        (-((wide - 1 - phase - front) // stride), (phase + front) // stride + 1)
        for phase in range(stride)
    )
    return Reach(stride, 1, phases).of(span, extra)


def _is_same(node: ir.Node) -> bool:
    return (node.attributes.get_string("auto_pad", "NOTSET") or "").startswith("SAME")


def pad(walk: Walk, node: ir.Node) -> State:
    """Elements in front and behind; a crop where they are fewer than none."""
    span = walk.state(node.inputs[0])
    assert isinstance(span, Span)
    pads = walk.fixed(node.inputs[1])
    if node.attributes.get_string("mode", "constant") == "wrap" or pads is None:
        return span.stopped(Blocked(label(node), "its pads depend on the whole"))
    rank = walk.rank(node.inputs[0])
    axes = walk.numbers(node.inputs[3]) if len(node.inputs) > 3 else []
    order = [a % rank for a in axes] or list(range(rank))
    if span.axis not in order:
        return span
    place = order.index(span.axis)
    return shifted(span, pads[place], pads[place + len(order)])


def shifted(span: Span, front: int, behind: int) -> Span:
    """With so many elements more at both ends, which only the windows there get right."""
    return Reach(1, 1, ((-front, 1 - front),)).of(span, span.extra + front + behind)


def cut(walk: Walk, node: ir.Node) -> State:
    """Slice: along the axis from a fixed element on, up to a fixed distance from the end."""
    span = walk.state(node.inputs[0])
    assert isinstance(span, Span)
    rank, stop = walk.rank(node.inputs[0]), Blocked(label(node), "it takes a stretch of the whole")
    parts: list[tuple[int, int, int, int]] = []
    for which in BOTH:
        starts, ends, axes, steps = (
            walk.numbers(node.inputs[i], which) if len(node.inputs) > i else []
            for i in (1, 2, 3, 4)
        )
        axes = [a % rank for a in axes] or list(range(len(starts)))
        if span.axis not in axes:
            return span
        place, size = axes.index(span.axis), span.length(walk.lengths[which])
        step = steps[place] if steps else 1
        if step < 1:
            return span.stopped(stop)
        start, end, _ = slice(starts[place], ends[place], step).indices(size)
        parts.append((start, end - size, step, size))
    (start, back, step, _), (again, other, *_) = parts
    if (start, back) != (again, other):
        return span.stopped(stop)
    extra = ceil(Fraction(span.extra + back - start, step))
    return Reach(1, step, ((start, start + 1),)).of(span, extra)


def concatenate(walk: Walk, node: ir.Node) -> State:
    """Along another axis as element by element; along this one, constants in front and behind."""
    spans = [(i, s) for i, v in enumerate(node.inputs) if isinstance(s := walk.state(v), Span)]
    axis = (node.attributes.get_int("axis") or 0) % walk.rank(node.inputs[0])
    if all(span.axis != axis for _, span in spans):
        return elementwise(walk, node)
    place, span = spans[0]
    rest = [v for i, v in enumerate(node.inputs) if i != place]
    if any(walk.state(v) is not None for v in rest):
        return span.stopped(Blocked(label(node), "it joins what follows the latents, end to end"))
    sizes = [0 if i == place else walk.shape(v)[axis] for i, v in enumerate(node.inputs)]
    return shifted(span, sum(sizes[:place]), sum(sizes[place:]))


def resize(walk: Walk, node: ir.Node) -> State:
    """A whole number of elements of each, or one of several, at coordinates that do not depend on
    the size."""
    span = walk.state(node.inputs[0])
    assert isinstance(span, Span)
    values = node.inputs[0], node.outputs[0]
    have, made = ([walk.shape(v, which)[span.axis] for which in BOTH] for v in values)
    if have == made:
        return span
    scale = Fraction(made[0], have[0])
    mode = node.attributes.get_string("mode", "nearest") or ""
    at = node.attributes.get_string("coordinate_transformation_mode", "half_pixel") or ""
    given = constant(node.inputs[2]) if len(node.inputs) > 2 else None
    axes = node.attributes.get_ints("axes") or list(range(walk.rank(node.inputs[0])))
    said = (
        float(scale)
        if given is None or not given.size
        else float(given[list(axes).index(span.axis)])
    )
    if (
        made[1] != scale * have[1] or said != float(scale) or at not in _COORDINATES
        or node.attributes.get_int("antialias", 0)
    ):  # fmt: skip
        return span.stopped(
            Blocked(label(node), f"its scale or coordinates ({at}) depend on the size")
        )
    up, down = scale.numerator, scale.denominator
    middle = 0 if at == "asymmetric" else Fraction(1, 2)
    phases = tuple(_read((p + middle) / scale - middle, mode, node) for p in range(up))
    extra = Fraction(span.extra) * scale
    if extra.denominator > 1:
        return span.stopped(Blocked(label(node), "its size is no whole number of its input's"))
    return Reach(up, down, phases).of(span, int(extra))


_COORDINATES = ("half_pixel", "pytorch_half_pixel", "half_pixel_symmetric", "asymmetric")


def _read(x: Fraction, mode: str, node: ir.Node) -> tuple[int, int]:
    """First and end of the elements that are read for the coordinate x."""
    low = floor(x)
    if mode in ("linear", "cubic") and x == low:
        return low, low + 1
    if mode == "linear":
        return low, low + 2
    if mode == "cubic":
        return low - 1, low + 3
    half = Fraction(1, 2)
    rounding = node.attributes.get_string("nearest_mode", "round_prefer_floor")
    near = {"floor": low, "ceil": ceil(x), "round_prefer_ceil": floor(x + half)}
    at = near.get(rounding or "", ceil(x - half))
    return at, at + 1


def to_space(walk: Walk, node: ir.Node) -> State:
    """DepthToSpace: channels become `blocksize` elements along both axes."""
    span = walk.state(node.inputs[0])
    assert isinstance(span, Span)
    size = node.attributes.get_int("blocksize") or 1
    return Reach(size, 1, ((0, 1),) * size).of(span, span.extra * size)


def to_depth(walk: Walk, node: ir.Node) -> State:
    """SpaceToDepth: `blocksize` elements along both axes become channels."""
    span = walk.state(node.inputs[0])
    assert isinstance(span, Span)
    size = node.attributes.get_int("blocksize") or 1
    if span.extra % size:
        return span.stopped(Blocked(label(node), "its size is no whole number of its input's"))
    return Reach(1, size, ((0, size),)).of(span, span.extra // size)


SLIDES: Mapping[str, Callable[[Walk, ir.Node], State]] = {
    "Conv": convolve, "ConvTranspose": transpose_convolve, "MaxPool": convolve,
    "AveragePool": convolve, "LpPool": convolve, "Pad": pad, "Slice": cut, "Concat": concatenate,
    "Resize": resize, "DepthToSpace": to_space, "SpaceToDepth": to_depth,
}  # fmt: skip
