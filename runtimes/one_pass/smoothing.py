"""Decoding in windows that are cross-faded: an approximation of the whole, piece by piece."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace

import numpy as np

from graftline.errors import BackendError, RequestError
from graftline.ports import Port
from graftline.runtimes.one_pass.feeding import Array
from graftline.runtimes.one_pass.windows import Feed, Run, cut_along
from graftline.smoothing import Smoothing


@dataclass(frozen=True)
class Smoothed:
    """A decoder in such windows: what runs it, its latents and what goes along them, and how."""

    run: Run
    main: Port
    ports: tuple[Port, ...]
    how: Smoothing

    def decode(self, feed: Feed, size: int | None = None) -> Array:
        """All pieces. Raises RequestError for windows that are too small."""
        return np.concatenate(list(self.pieces(feed, size)), axis=self.how.out_axis)

    def pieces(self, feed: Feed, size: int | None = None) -> Iterator[Array]:
        """The output along its one axis, as windows, of `size` latents, make it final."""
        return replace(self, how=self.how.of_size(size))._pieces(feed)

    def _pieces(self, feed: Feed) -> Iterator[Array]:
        tail, symbol = None, self.main.shape[self.how.axis]
        for begin, stop in self.how.windows(feed[self.main.name].shape[self.how.axis]):
            part = feed | cut_along(feed, self.ports, symbol, slice(begin, stop))
            made = self._joined(tail, self._tile(part, stop - begin))
            piece, tail = self._split(made, stop - begin)
            yield piece
        if tail is not None:
            yield tail

    def stream(self, chunks: Iterable[Array], feed_of: Callable[[Array], Feed]) -> Iterator[Array]:
        """What becomes final with each chunk of latents, and the rest at their end. `feed_of` makes
        a feed of latents."""
        how, tail, held = self.how, None, None
        for chunk in chunks:
            held = chunk if held is None else self._appended(held, chunk)
            while held.shape[how.axis] >= how.size:
                made = self._tile(feed_of(self._stretch(held, 0, how.size)), how.size)
                piece, tail = self._split(self._joined(tail, made), how.size)
                yield piece
                held = self._stretch(held, how.stride, held.shape[how.axis])
        left = 0 if held is None else held.shape[how.axis]
        if held is not None and left > (0 if tail is None else how.overlap):
            yield self._joined(tail, self._tile(feed_of(held), left))
        elif tail is not None:
            yield tail

    def _joined(self, tail: Array | None, made: Array) -> Array:
        """What a window makes, its first elements faded in over the last of the one before."""
        if tail is None:
            return made
        count, axis = tail.shape[self.how.out_axis], self.how.out_axis
        head, rest = np.split(made, [count], axis)
        shape = [count if a == axis else 1 for a in range(made.ndim)]
        share = ((np.arange(count) + 0.5) / count).reshape(shape).astype(made.dtype)
        return np.concatenate([tail + share * (head - tail), rest], axis)

    def _split(self, made: Array, latents: int) -> tuple[Array, Array | None]:
        """What is final of a window's elements, and those that the next is faded in over; of one
        shorter than others, which is the last, all are final."""
        if latents < self.how.size:
            return made, None
        at = made.shape[self.how.out_axis] - self.how.ratio * self.how.overlap
        piece, tail = np.split(made, [at], self.how.out_axis)
        return piece, tail

    def _tile(self, feed: Feed, latents: int) -> Array:
        made = self.run(feed)
        if (have := made.shape[self.how.out_axis]) != (told := self.how.ratio * latents):
            raise BackendError(
                f"a window of {latents} latents makes {have} elements, and should make {told}; "
                "rebuild the bundle"
            )
        return made

    def _stretch(self, latents: Array, begin: int, stop: int) -> Array:
        return latents[(slice(None),) * self.how.axis + (slice(begin, stop),)]

    def _appended(self, held: Array, chunk: Array) -> Array:
        axis = self.how.axis
        shapes = [(*a.shape[:axis], *a.shape[axis + 1 :]) for a in (held, chunk)]
        if held.ndim != chunk.ndim or shapes[0] != shapes[1]:
            raise RequestError(f"a chunk is {list(chunk.shape)}, those before {list(held.shape)}")
        return np.concatenate([held, chunk], axis)
