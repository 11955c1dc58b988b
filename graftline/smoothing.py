"""Windows of a decoder that reads all of its latents: each is decoded by itself, and neighbours are
cross-faded where they overlap."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace

import onnx_ir as ir

from graftline.errors import BundleError, RequestError
from graftline.typed_json import Misfit, read

SMOOTHING_KEY = "graftline.smoothing"


@dataclass(frozen=True)
class Smoothing:
    """Along `axis` of the latents, which is `out_axis` of the output: n latents become `ratio` * n
    elements. Windows are `size` latents long, and share `overlap` of them with their neighbours."""

    axis: int
    out_axis: int
    ratio: int
    size: int
    overlap: int

    @property
    def stride(self) -> int:
        """Latents from one window to the next."""
        return self.size - self.overlap

    def of_size(self, size: int | None) -> Smoothing:
        """With windows of another size. Raises RequestError for one in which fades would meet."""
        made = self if size is None else replace(self, size=size)
        if made.size < 2 * made.overlap:
            raise RequestError(
                f"windows of {made.size} latents are too short: they share {made.overlap} with "
                f"either neighbour; use at least {2 * made.overlap}"
            )
        return made

    def windows(self, latents: int) -> Iterator[tuple[int, int]]:
        """Where windows begin and stop. All but the last are of full size; the last holds more than
        the overlap, unless it is the only one."""
        begin = 0
        while begin + self.size <= latents:
            yield begin, begin + self.size
            begin += self.stride
        if latents > begin + (self.overlap if begin else 0):
            yield begin, latents


def write_smoothing(model: ir.Model, smoothing: Smoothing) -> None:
    """Stamp how its windows are smoothed into the model."""
    model.metadata_props[SMOOTHING_KEY] = json.dumps(asdict(smoothing))


def read_smoothing(model: ir.Model) -> Smoothing | None:
    """What is stamped in the model; of most there is none. Raises BundleError."""
    text = model.metadata_props.get(SMOOTHING_KEY)
    try:
        return None if text is None else read(Smoothing, json.loads(text))
    except Misfit as error:
        raise BundleError(f"its smoothing cannot be read ({error}); rebuild it") from error
