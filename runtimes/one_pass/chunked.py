"""Drawing chunk after chunk: each is drawn behind the one before, which is carried to it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from graftline.errors import RequestError
from graftline.ports import Port, by_role
from graftline.roles import BEGUN, FRESH, NOISE, PAST
from graftline.runtimes.one_pass.feeding import Array, told

Feed = dict[str, Array]
AXIS = -1
"""Of a sample, along which chunks lie side by side; latents have their second."""


def is_chunked(ports: Iterable[Port]) -> bool:
    """Whether a graph draws a chunk behind the one before."""
    return bool(by_role(ports, BEGUN, "in"))


def seed_of(seed: int, number: int) -> int:
    """The seed of the noise of chunk `number`."""
    return int(np.random.SeedSequence((seed, number)).generate_state(1)[0])


def check_chunks(
    path: Path, ports: Sequence[Port], given: Sequence[str | None], window: int | None
) -> None:
    """Raise RequestError where the graph of a chunk does not draw it, and for what is of one chunk
    alone; `given` are the names of ports."""
    past = {p.name for p in by_role(ports, PAST, "in")}
    if not any(p.mirror in past for p in ports):
        raise RequestError(
            f"{path} says of a chunk what it predicts, and draws none; rebuild it with "
            "--recipe music2latent2"
        )
    if window is not None:
        raise RequestError(f"window={window}: chunks are as long as the bundle has them")
    if odd := [p.name for p in ports if p.name in given and p.role in (NOISE, FRESH)]:
        raise RequestError(f"'{odd[0]}' is of one chunk; noise of all is drawn by seed=")


@dataclass(frozen=True)
class Chunked:
    """A denoiser of chunks: what runs it, and gives the sample and what the next run is given; its
    latents, of one chunk; and what makes a feed of them, with the noise of chunk number n."""

    run: Callable[[Feed], tuple[Array, Feed]]
    main: Port
    feed_of: Callable[[Array, int], Feed]

    def decode(self, latents: Array) -> Array:
        """The samples of all chunks, side by side."""
        return np.concatenate(list(self.pieces(latents)), axis=AXIS)

    def pieces(self, latents: Array) -> Iterator[Array]:
        """The sample of each chunk. Raises RequestError for latents of no whole number of them."""
        return self.stream(iter(np.split(latents, self._count(latents), axis=1)))

    def stream(self, pieces: Iterable[Array]) -> Iterator[Array]:
        """The samples of each piece of latents, of whole chunks. Raises RequestError for others,
        and for another number of rows than before."""
        held, number, rows = Feed(), 0, 0
        for piece in pieces:
            made = list[Array]()
            for chunk in np.split(piece, self._count(piece), axis=1):
                if number and len(chunk) != rows:
                    raise RequestError(f"a chunk has {len(chunk)} rows, those before {rows}")
                one, held = self.run(self.feed_of(chunk, number) | held)
                made.append(one)
                number, rows = number + 1, len(chunk)
            yield np.concatenate(made, axis=AXIS)

    def _count(self, latents: Array) -> int:
        """How many chunks these are."""
        each, long = self.main.shape[1], latents.shape[1] if latents.ndim > 1 else 0
        assert isinstance(each, int), "the pass has seen to it"
        if not long or long % each:
            raise RequestError(
                f"latents {list(latents.shape)} are no whole chunks: {told(self.main)} each; give "
                f"a multiple of {each} along the second axis"
            )
        return long // each
