"""The engine of a host that runs once: latents in, a waveform or an image out."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from graftline.bundle.reader import Bundle
from graftline.errors import BackendError, RequestError
from graftline.facts import Facts
from graftline.ports import Port
from graftline.receptive_field import ReceptiveField
from graftline.runtimes.one_pass.feeding import Array, feed_of, main_port
from graftline.runtimes.one_pass.windows import Windowed
from graftline.runtimes.ort.graph import open_graph
from graftline.targets import CPU


class DecodeEngine:
    """Decodes latents. Threads may share it: a call keeps nothing for the next."""

    def __init__(
        self,
        path: Path,
        facts: Facts,
        ports: Sequence[Port],
        own: Sequence[Port],
        session: Any,
        fields: Sequence[ReceptiveField] = (),
    ) -> None:
        self.path, self.facts, self.ports, self.fields = path, facts, tuple(ports), tuple(fields)
        self._session = session
        inputs = [p for p in ports if p.direction == "in"]
        theirs = [p for p in own if p.direction == "in"]
        self.names = {p.name.replace(".", "_"): p.name for p in inputs}
        """The names that conditions may be given by: the bundle's and those of the checkpoint."""
        for port in inputs:
            known = next((o for o in theirs if o.role == port.role and o.layer == port.layer), None)
            if known is not None:
                theirs.remove(known)
                self.names.setdefault(known.name, port.name)
        self.output = next(p for p in ports if p.direction == "out")

    @property
    def main(self) -> Port:
        """The input that is decoded."""
        return main_port(self.ports)

    def decode(
        self, latents: Any, *, seed: int = 0, window: int | None = None, **conditions: Any
    ) -> Array:
        """Decode a batch of latents, as `main` describes them, into waveforms [B, C, T] or images
        [B, C, H, W].

        `conditions` go by the names of the bundle's ports ("condition_0") or by the checkpoint's
        own; `seed` is that of noise, where there is any. A bundle made with the pass `window`
        decodes in windows of its own size or of `window` latents along each axis; 0: at once.
        Raises RequestError for what does not fit.
        """
        feed = self._feed(latents, conditions, seed)
        if window == 0 or (window is None and not self.fields):
            return self._run(feed)
        return self._windowed().decode(feed, window)

    def stream_decode(
        self,
        latents: Any,
        *,
        seed: int = 0,
        window: int | None = None,
        **conditions: Any,
    ) -> Iterator[Array]:
        """Decode latents piece by piece along their one axis: the pieces joined are what `decode`
        gives. `latents` are an array, of which each piece is a window's, or an iterable of chunks,
        each of which gives what it makes certain. Needs a bundle made with the pass `window`.
        Raises RequestError.
        """
        windowed = self._windowed()
        if isinstance(latents, np.ndarray):
            return windowed.pieces(self._feed(latents, conditions, seed), window)
        if window is not None:
            raise RequestError("window= is for an array; chunks are as long as they are given")
        if odd := [p.name for p in self.along if p is not self.main]:
            raise RequestError(f"'{odd[0]}' goes along the latents; give all of it as arrays")
        return windowed.stream(
            map(np.asarray, self._chunks(latents)), lambda some: self._feed(some, conditions, seed)
        )

    def _chunks(self, latents: Any) -> Iterable[Any]:
        if not isinstance(latents, Iterable):
            raise RequestError(f"stream_decode takes an array or chunks, not {latents!r:.40}")
        return latents

    def _feed(self, latents: Any, conditions: dict[str, Any], seed: int) -> dict[str, Array]:
        return feed_of(self.ports, self.names, latents, conditions, seed)

    @property
    def along(self) -> tuple[Port, ...]:
        """The latents, and the inputs that are as long."""
        free = {self.main.shape[f.axis] for f in self.fields}
        return tuple(p for p in self.ports if p.direction == "in" and free & set(p.shape))

    def _windowed(self) -> Windowed:
        if not self.fields:
            raise RequestError(f"{self.path} has no windows; rebuild it with --passes window")
        return Windowed(self._run, self.main, self.along, self.fields)

    def _run(self, feed: dict[str, Array]) -> Array:
        try:
            (found,) = self._session.run([self.output.name], feed)
        except Exception as error:  # onnxruntime's exceptions share no public base class
            reason = " ".join(str(error).split())[:300]
            shapes = ", ".join(f"{name} {list(a.shape)}" for name, a in feed.items())
            raise RequestError(f"{self.path} cannot decode {shapes}: {reason}") from error
        return np.asarray(found)


def open_decode_engine(bundle: Bundle, threads: int | None = None) -> DecodeEngine:
    """Open a bundle of a host that runs once. Raises BackendError."""
    manifest = bundle.manifest
    if manifest.target != CPU:
        raise BackendError(
            f"{bundle.path}: built for {manifest.target}; a {manifest.facts.kind} runs on {CPU}"
        )
    session = open_graph(bundle.graph(manifest.target), threads or os.cpu_count() or 1, plans=False)
    export = manifest.stages.get(manifest.main.made_of)
    own = () if export is None else export.ports
    return DecodeEngine(
        bundle.path, manifest.facts, manifest.main.ports, own, session, manifest.main.fields
    )
