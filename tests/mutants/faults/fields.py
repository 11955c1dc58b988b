"""Receptive fields: too small, at other phases, of other lengths; windows that keep too much."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import onnx_ir as ir

from faults.mutant import Mutant, Touched, after, instead
from graftline.passes import GRAFTS
from graftline.passes.anchors.fields import slides
from graftline.passes.anchors.fields.span import Reach, Span
from graftline.receptive_field import ReceptiveField, read_fields, write_fields
from graftline.runtimes.one_pass.smoothing import Smoothed

ON = {"passes": "window"}


def _nearer(left: int, right: int) -> Callable[[Any, Touched], Any]:
    """Each convolution with more than one phase gets so many elements more right at its ends."""

    def make(real: Callable[[Reach, Span, int], Span], touched: Touched) -> Any:
        def of(self: Reach, span: Span, extra: int) -> Span:
            made = real(self, span, extra)
            if self.up == 1:
                return made
            touched.count += 1
            first, end = max(0, made.left - left), min(extra, made.right + right)
            return replace(made, left=first, right=end)

        return of

    return make


def _without_gaps(real: Any, touched: Touched) -> Any:
    """Dilations are not seen: what a kernel reads is as wide as the kernel."""

    def window(walk: Any, node: ir.Node, place: int) -> Any:
        wide, stride, front, behind, up = real(walk, node, place)
        gaps = (node.attributes.get_ints("dilations") or [1, 1])[place]
        touched.count += gaps > 1
        lost = (wide - 1) * (gaps - 1) // gaps
        return wide - lost, stride, front - lost // 2, behind - lost // 2, up

    return window


def _padded_twice(real: Any, touched: Touched) -> Any:
    """Pads are counted at both ends of both ends."""

    def window(walk: Any, node: ir.Node, place: int) -> Any:
        wide, stride, front, behind, up = real(walk, node, place)
        touched.count += front > 0
        return wide, stride, 2 * front, 2 * behind, up

    return window


def written(**wrong: Callable[[ReceptiveField], int]) -> Callable[[ir.Model], int]:
    """The graph says another field than was found."""

    def edit(model: ir.Model) -> int:
        fields = read_fields(model)
        made = [replace(f, **{name: of(f) for name, of in wrong.items()}) for f in fields]
        write_fields(model, tuple(made))
        return len(fields)

    return edit


def _early(real: Any, touched: Touched) -> Any:
    """A window begins where its first element is, without what that depends on."""

    def start(self: ReceptiveField, first: int) -> int:
        touched.count += 1
        return max(0, first // self.ratio // self.step * self.step)

    return start


def _abrupt(real: Any, touched: Touched) -> Any:
    """A window takes over from the one before without a fade."""

    def joined(self: Smoothed, tail: Any, made: Any) -> Any:
        touched.count += tail is not None
        return real(self, None, made)

    return joined


def _late(real: Any, touched: Touched) -> Any:
    """A shorter part of a window is held back for the next to fade in over."""

    def split(self: Smoothed, made: Any, latents: int) -> Any:
        touched.count += 1
        how = replace(self.how, overlap=self.how.overlap - 1)
        return real(replace(self, how=how), made, latents)

    return split


WINDOW, SMOOTHED = GRAFTS["window"], {"recipe": "x-vc"}
FIELDS = [
    Mutant("field-one-too-small-in-front", "fields: Reach", "a latent less in front", "upscaler",
           "windowed", instead(Reach, "of", _nearer(2, 0)), ON),
    Mutant("field-one-too-small-behind", "fields: Reach", "an element less behind", "upscaler",
           "windowed", instead(Reach, "of", _nearer(0, 1)), ON),
    Mutant("field-without-dilation", "fields: convolve", "a dilated kernel is as wide as another",
           "vocoder", "windowed", instead(slides, "sliding", _without_gaps), ON),
    Mutant("field-with-pads-twice", "fields: convolve", "pads are counted twice", "vocoder",
           "NotApplicable", instead(slides, "sliding", _padded_twice), ON),
    Mutant("field-of-another-ratio", "window", "half as many elements for a latent", "upscaler",
           "windowed", after(WINDOW, written(ratio=lambda f: f.ratio // 2)), ON),
    Mutant("field-of-another-length", "window", "the whole is one element longer", "vocoder",
           "windowed", after(WINDOW, written(extra=lambda f: f.extra + 1)), ON),
    Mutant("field-without-an-end", "window", "a window is right up to its end", "vocoder",
           "windowed", after(WINDOW, written(right=lambda f: 0)), ON),
    Mutant("windows-without-overlap", "receptive_field: start", "windows do not overlap",
           "upscaler", "windowed", instead(ReceptiveField, "start", _early), ON),
    Mutant("windows-without-a-fade", "smoothing: joined", "windows are not cross-faded",
           "converter", "smoothed", instead(Smoothed, "_joined", _abrupt), SMOOTHED),
    Mutant("windows-that-shift", "smoothing: split", "elements move where windows meet",
           "converter", "smoothed", instead(Smoothed, "_split", _late), SMOOTHED),
]  # fmt: skip
