"""Decoding chunk by chunk: what a chunk still needs of those before is carried from run to run."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from graftline.errors import RequestError
from graftline.ports import Port
from graftline.runtimes.one_pass.feeding import Array
from graftline.runtimes.one_pass.windows import Feed, cut_along

AXIS = -1
"""Of latents and of the waveform: a stream has one axis, the last of both."""


@dataclass(frozen=True)
class Carried:
    """A causal decoder: what runs it, and gives the output and the contexts of the next run; its
    latents and what goes along them."""

    run: Callable[[Feed], tuple[Array, Feed]]
    main: Port
    ports: tuple[Port, ...]

    def decode(self, feed: Feed, size: int | None = None) -> Array:
        """All pieces: the whole's output, in the memory of one piece."""
        return np.concatenate(list(self.pieces(feed, size)), axis=AXIS)

    def pieces(self, feed: Feed, size: int | None = None) -> Iterator[Array]:
        """The output of every `size` latents. Raises RequestError without a size."""
        if size is None or size < 1:
            raise RequestError("say window=, how many latents a piece is made of: at least 1")
        symbol, held, count = self.main.shape[AXIS], Feed(), feed[self.main.name].shape[AXIS]
        for begin in range(0, count, size):
            stretch = slice(begin, min(begin + size, count))
            piece, held = self.run(feed | cut_along(feed, self.ports, symbol, stretch) | held)
            yield piece

    def stream(self, chunks: Iterable[Array], feed_of: Callable[[Array], Feed]) -> Iterator[Array]:
        """The output of each chunk of latents. `feed_of` makes a feed of latents."""
        held = Feed()
        for chunk in chunks:
            piece, held = self.run(feed_of(chunk) | held)
            yield piece
