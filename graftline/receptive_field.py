"""The receptive field of a decoder along one axis, and the windows that it is decoded in.

A window is a run on a stretch of the latents. Of what it makes, those elements are kept whose
receptive field lies within the stretch, or beyond an end of the whole, where the window pads as the
whole does. Neighbouring windows overlap by exactly the field.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass

import onnx_ir as ir

from graftline.errors import BundleError, RequestError
from graftline.typed_json import Misfit, read

FIELDS_KEY = "graftline.receptive_fields"


@dataclass(frozen=True)
class ReceptiveField:
    """Along `axis` of the latents, which is `out_axis` of the output: n latents become `ratio` * n
    + `extra` elements. Of a window over the latents from s up to e, the elements from `ratio` * s +
    `left` up to `ratio` * e + `right` are the whole's. s and e are multiples of `step`. `size` are
    the latents of a window, its overlap included."""

    axis: int
    out_axis: int
    ratio: int
    extra: int
    left: int
    right: int
    step: int
    size: int = 0

    @property
    def before(self) -> int:
        """Latents in front of its own that an element depends on."""
        return -(-self.left // self.ratio)

    @property
    def behind(self) -> int:
        """Latents behind its own that an element depends on."""
        return max(0, -(self.right // self.ratio))

    @property
    def least(self) -> int:
        """The shortest window that gives a new element wherever it lies, and that holds whatever
        the graph reflects at its ends."""
        return self._whole(self.before + self.behind + self.step) + self.step

    @property
    def usual(self) -> int:
        """The size of windows for which none is given: a third of each is computed twice."""
        return self._whole(3 * (self.before + self.behind) + self.step)

    def start(self, first: int) -> int:
        """Where a window begins at the latest that gives the element `first`."""
        return max(0, (first - self.left) // self.ratio // self.step * self.step)

    def end(self, stop: int, latents: int) -> int:
        """The element up to which a window over the latents up to `stop` is right, of so many."""
        whole = self.ratio * latents + self.extra
        return whole if stop >= latents else min(whole, self.ratio * stop + self.right)

    def windows(self, latents: int, size: int) -> Iterator[Window]:
        """Windows of `size` latents; the last begins so early that it is as long as the others,
        whose memory it finds. Raises RequestError for a size that is too small."""
        size = size // self.step * self.step
        if size < self.least:
            raise RequestError(
                f"windows of {size} latents are too short: {self.before} in front of an element "
                f"and {self.behind} behind it count; use at least {self.least}"
            )
        done = 0
        while done < self.ratio * latents + self.extra:
            begin = min(self.start(done), max(0, latents - size) // self.step * self.step)
            stop = min(latents, begin + size)
            upto = self.end(stop, latents)
            yield Window(begin, stop, done - self.ratio * begin, upto - self.ratio * begin)
            done = upto

    def _whole(self, latents: int) -> int:
        return -(-latents // self.step) * self.step


@dataclass(frozen=True)
class Window:
    """A run over the latents from `begin` up to `stop`, of which the elements from `first` up to
    `end` are kept."""

    begin: int
    stop: int
    first: int
    end: int


def write_fields(model: ir.Model, fields: tuple[ReceptiveField, ...]) -> None:
    """Stamp the receptive fields, one for each axis, into the model."""
    model.metadata_props[FIELDS_KEY] = json.dumps([asdict(f) for f in fields])


def read_fields(model: ir.Model) -> tuple[ReceptiveField, ...]:
    """The receptive fields stamped in the model; of most there are none. Raises BundleError."""
    try:
        rows = json.loads(model.metadata_props.get(FIELDS_KEY, "[]"))
        fields: tuple[ReceptiveField, ...] = read(tuple[ReceptiveField, ...], rows)
        return fields
    except Misfit as error:
        raise BundleError(f"receptive fields cannot be read ({error}); rebuild it") from error
