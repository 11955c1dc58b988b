"""Decoding in windows: the output of the whole in the memory of one window, or piece by piece."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import product

import numpy as np

from graftline.errors import BackendError, RequestError
from graftline.ports import Port
from graftline.receptive_field import ReceptiveField, Window
from graftline.runtimes.one_pass.feeding import Array

Feed = dict[str, Array]
Run = Callable[[Feed], Array]


@dataclass(frozen=True)
class Windowed:
    """A decoder in windows: what runs it, its latents and what goes along them, and the receptive
    field along each axis."""

    run: Run
    main: Port
    ports: tuple[Port, ...]
    fields: tuple[ReceptiveField, ...]

    def decode(self, feed: Feed, size: int | None = None) -> Array:
        """The whole's output. Raises RequestError for windows that are too small."""
        made: Array | None = None
        each = [(f, feed[self.main.name].shape[f.axis], size or f.size) for f in self.fields]
        totals = [f.ratio * count + f.extra for f, count, _ in each]
        for windows in product(*(list(f.windows(count, long)) for f, count, long in each)):
            tile = self.tile(feed, windows)
            if made is None:
                shape = list(tile.shape)
                for f, total in zip(self.fields, totals, strict=True):
                    shape[f.out_axis] = total
                made = np.empty(shape, tile.dtype)
            put, take = [slice(None)] * tile.ndim, [slice(None)] * tile.ndim
            for f, w in zip(self.fields, windows, strict=True):
                put[f.out_axis] = slice(f.ratio * w.begin + w.first, f.ratio * w.begin + w.end)
                take[f.out_axis] = slice(w.first, w.end)
            made[tuple(put)] = tile[tuple(take)]
        assert made is not None, "an output has at least one element"
        return made

    def pieces(self, feed: Feed, size: int | None = None) -> Iterator[Array]:
        """The whole's output along its one axis, one window's after another."""
        one = self._one()
        for window in one.windows(feed[self.main.name].shape[one.axis], size or one.size):
            yield kept(self.tile(feed, [window]), one, window)

    def tile(self, feed: Feed, windows: Sequence[Window]) -> Array:
        """What a window makes. Raises BackendError where it is not as long as the fields say."""
        made = self.run(self.cut(feed, windows))
        for f, window in zip(self.fields, windows, strict=True):
            count = window.stop - window.begin
            have, told = made.shape[f.out_axis], f.ratio * count + f.extra
            if have != told:
                raise BackendError(
                    f"a window of {count} latents makes {have} elements, where its receptive field "
                    f"says {told}; rebuild the bundle"
                )
        return made

    def cut(self, feed: Feed, windows: Sequence[Window]) -> Feed:
        """A feed of a window: of the latents and of what goes along them, the stretch that it is
        over."""
        found = dict(feed)
        for f, window in zip(self.fields, windows, strict=True):
            symbol = self.main.shape[f.axis]
            found |= cut_along(found, self.ports, symbol, slice(window.begin, window.stop))
        return found

    def _one(self) -> ReceptiveField:
        if len(self.fields) != 1:
            raise RequestError("a stream has one axis, and an image has two; use decode")
        return self.fields[0]

    def stream(self, chunks: Iterable[Array], feed_of: Callable[[Array], Feed]) -> Iterator[Array]:
        """What becomes certain with each chunk of latents, and the rest at their end. `feed_of`
        makes a feed of latents."""
        one = self._one()
        held = Held(one)
        for chunk in chunks:
            held.add(chunk)
            if (window := held.next()) is not None:
                yield self._piece(held, window, feed_of)
        if (window := held.last()) is not None:
            yield self._piece(held, window, feed_of)

    def _piece(self, held: Held, window: Window, feed_of: Callable[[Array], Feed]) -> Array:
        feed = feed_of(held.latents(window))
        here = Window(0, window.stop - window.begin, window.first, window.end)
        made = kept(self.tile(feed, [here]), held.along, window)
        held.forget(window)
        return made


def cut_along(feed: Feed, ports: Sequence[Port], symbol: int | str, stretch: slice) -> Feed:
    """Of the inputs that are as long as `symbol` says, a stretch."""
    found: Feed = {}
    for port in ports:
        for axis in (a for a, d in enumerate(port.shape) if d == symbol):
            array = found.get(port.name, feed[port.name])
            found[port.name] = array[(slice(None),) * axis + (stretch,)]
    return found


def kept(made: Array, one: ReceptiveField, window: Window) -> Array:
    """The elements of a window's output that are the whole's."""
    return made[(slice(None),) * one.out_axis + (slice(window.first, window.end),)]


@dataclass
class Held:
    """The last latents of a stream, from `base` on: those that elements to come depend on. `done`
    elements are out."""

    along: ReceptiveField
    base: int = 0
    done: int = 0
    parts: list[Array] = field(default_factory=list[Array])

    @property
    def count(self) -> int:
        """Latents so far, those forgotten included."""
        return self.base + sum(part.shape[self.along.axis] for part in self.parts)

    def add(self, chunk: Array) -> None:
        """Take in the next latents. Raises RequestError for another shape."""
        axis = self.along.axis
        first = self.parts[0].shape if self.parts else chunk.shape
        if chunk.ndim <= axis or [*chunk.shape[:axis], *chunk.shape[axis + 1 :]] != [
            *first[:axis], *first[axis + 1 :]
        ]:  # fmt: skip
            raise RequestError(f"a chunk is {list(chunk.shape)}, those before are {list(first)}")
        self.parts.append(chunk)

    def next(self) -> Window | None:
        """The window that gives what has become certain; None where nothing has."""
        one, stop = self.along, self.count // self.along.step * self.along.step
        upto = one.ratio * stop + one.right
        if stop < one.least or upto <= self.done:
            return None
        begin = one.start(self.done)
        return Window(begin, stop, self.done - one.ratio * begin, upto - one.ratio * begin)

    def last(self) -> Window | None:
        """The window up to the end; None where nothing is left."""
        one, count = self.along, self.count
        upto = one.ratio * count + one.extra
        if upto <= self.done:
            return None
        begin = min(one.start(self.done), self._least(count))
        return Window(begin, count, self.done - one.ratio * begin, upto - one.ratio * begin)

    def _least(self, count: int) -> int:
        return max(0, count - self.along.least) // self.along.step * self.along.step

    def latents(self, window: Window) -> Array:
        """Those of a window."""
        self.parts = [np.concatenate(self.parts, axis=self.along.axis)]
        stretch = slice(window.begin - self.base, window.stop - self.base)
        return self.parts[0][(slice(None),) * self.along.axis + (stretch,)]

    def forget(self, window: Window) -> None:
        """Note what a window has given, and drop the latents that nothing to come depends on."""
        self.done = self.along.ratio * window.begin + window.end
        base = min(self.along.start(self.done), self._least(self.count))
        (whole,) = self.parts
        self.parts = [whole[(slice(None),) * self.along.axis + (slice(base - self.base, None),)]]
        self.base = base
