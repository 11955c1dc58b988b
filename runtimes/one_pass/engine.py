"""The engine of a host that runs once: it makes a waveform, an image, classes or a text."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from graftline.bundle.reader import Bundle
from graftline.errors import GraftlineError, RequestError
from graftline.facts import CanvasFacts, DecoderFacts, DenoiserFacts, Facts
from graftline.ports import Port, by_role
from graftline.receptive_field import ReceptiveField
from graftline.roles import BEGUN, CHOSEN, CONTEXT, DECODED, KEPT, NOISE, PAST
from graftline.runtimes.one_pass.carried import Carried
from graftline.runtimes.one_pass.chunked import Chunked, check_chunks, is_chunked, seed_of
from graftline.runtimes.one_pass.feeding import Array, feed_of, keyword, main_port
from graftline.runtimes.one_pass.fill import Filler, canvas_of, mask_of
from graftline.runtimes.one_pass.guided import both, branches, check_guidance
from graftline.runtimes.one_pass.recognise import (
    Utterance,
    cut,
    outputs_of,
    spoken_of,
    texts_of,
)
from graftline.runtimes.one_pass.smoothing import Smoothed
from graftline.runtimes.one_pass.windows import Windowed
from graftline.runtimes.ort.graph import open_graph
from graftline.smoothing import Smoothing
from graftline.targets import CPU


class DecodeEngine:
    """Runs a graph that decodes latents, draws samples or writes a text. Threads may share it: a
    call keeps nothing for the next."""

    def __init__(
        self,
        path: Path,
        facts: Facts,
        ports: Sequence[Port],
        own: Sequence[Port],
        session: Any,
        fields: Sequence[ReceptiveField] = (),
        smoothing: Smoothing | None = None,
    ) -> None:
        self.path, self.facts, self.ports, self.fields = path, facts, tuple(ports), tuple(fields)
        self._session, self.smoothing = session, smoothing
        inputs = [p for p in ports if p.direction == "in" and not p.state and p.role != CHOSEN]
        theirs = [p for p in own if p.direction == "in"]
        self.names = {keyword(p.name): p.name for p in inputs}
        """The names that conditions may be given by: the bundle's and those of the checkpoint."""
        for port in inputs:
            known = next((o for o in theirs if o.role == port.role and o.layer == port.layer), None)
            if known is not None:
                theirs.remove(known)
                self.names.setdefault(known.name, port.name)
        outputs = [p for p in ports if p.direction == "out"]
        self.output = next(iter(by_role(outputs, DECODED) or [p for p in outputs if not p.state]))
        carried = {p.name for p in ports if p.role in (CONTEXT, PAST, BEGUN)}
        self.contexts = {p.name: p.mirror for p in ports if p.mirror in carried}
        """Outputs that the next chunk of a stream is given, and as which inputs."""
        self.kept = {p.name: p.mirror for p in ports if p.role == KEPT and p.mirror}
        """Outputs that a light step over the same canvas is given, and as which inputs."""
        self.loops: Mapping[int, Callable[[], DecodeEngine]] = {}
        """By the number of steps, what opens that engine."""
        self._opened: dict[int, DecodeEngine] = {}

    @property
    def main(self) -> Port:
        """The input that is decoded."""
        return main_port(self.ports)

    def decode(
        self,
        latents: Any,
        *,
        seed: int = 0,
        steps: int | None = None,
        window: int | None = None,
        **conditions: Any,
    ) -> Array:
        """Decode a batch of latents, as `main` describes them, into waveforms [B, C, T] or images
        [B, C, H, W]; features that are scored by queries into scores [B, K, places] or, with the
        pass `reduce-classes`, classes [B, places]. A sampling loop takes its first noise in their
        place, and `steps` is one of `self.loops`, the numbers of steps that the bundle holds it in.

        `conditions` go by the names of the bundle's ports ("condition_0") or by the checkpoint's
        own; `seed` is that of noise, where there is any. A bundle made with the pass `window`
        decodes in windows of its own size or of `window` latents along each axis; 0: at once. One
        made with `overlap-smoothing` decodes at once, or by a `window` what it streams; one made
        with `carry-context` at once, or `window` latents after another. Raises RequestError for
        what does not fit.
        """
        if isinstance(self.facts, CanvasFacts):
            raise RequestError(f"{self.path} fills canvases; use engine.fill")
        if steps is not None:
            return self._loop(steps).decode(latents, seed=seed, window=window, **conditions)
        if is_chunked(self.ports):
            return self._chunks(conditions, seed, window).decode(np.asarray(latents))
        feed = self._feed(latents, conditions, seed)
        if window == 0 or (window is None and not self.fields):
            return self._run(feed)
        return self._windows().decode(feed, window)

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
        each of which gives what it makes certain. Needs a bundle made with the pass `window`, with
        `carry-context`, which computes nothing twice, or with `overlap-smoothing`, whose pieces
        come near what `decode` gives. One made with `carry-chunk` draws chunk after chunk, as
        `decode` does, with noise by `seed` and the number of the chunk. Raises RequestError.
        """
        if is_chunked(self.ports):
            chunked = self._chunks(conditions, seed, window)
            whole = isinstance(latents, np.ndarray)
            return chunked.pieces(latents) if whole else chunked.stream(map(np.asarray, latents))
        windows = self._windows()
        if isinstance(latents, np.ndarray):
            return windows.pieces(self._feed(latents, conditions, seed), window)
        if window is not None:
            raise RequestError("window= is for an array; chunks are as long as they are given")
        if odd := [p.name for p in self.along if p is not self.main]:
            raise RequestError(f"'{odd[0]}' goes along the latents; give all of it as arrays")
        if not isinstance(latents, Iterable):
            raise RequestError(f"stream_decode takes an array or chunks, not {latents!r:.40}")
        chunks: Iterable[Any] = latents
        return windows.stream(
            map(np.asarray, chunks), lambda some: self._feed(some, conditions, seed)
        )

    def _feed(self, latents: Any, conditions: dict[str, Any], seed: int) -> dict[str, Array]:
        return feed_of(self.ports, self.names, latents, conditions, seed)

    def _chunks(self, conditions: dict[str, Any], seed: int, window: int | None) -> Chunked:
        """What draws chunk after chunk, each with noise of its own."""
        check_chunks(self.path, self.ports, [self.names.get(n) for n in conditions], window)
        return Chunked(
            self._run_on, self.main,
            lambda chunk, number: self._feed(chunk, conditions, seed_of(seed, number)),
        )  # fmt: skip

    @property
    def along(self) -> tuple[Port, ...]:
        """The latents, and the inputs that are as long."""
        along = [*self.fields, *([self.smoothing] if self.smoothing else ())]
        free = {self.main.shape[f.axis] for f in along}
        free |= {self.main.shape[-1]} if self.contexts else set()
        return tuple(p for p in self.ports if p.direction == "in" and free & set(p.shape))

    def _windows(self) -> Windowed | Smoothed | Carried:
        if self.contexts:
            return Carried(self._run_on, self.main, self.along)
        if self.smoothing is not None:
            return Smoothed(self._run, self.main, self.along, self.smoothing)
        if not self.fields:
            raise RequestError(f"{self.path} has no windows; rebuild it with --passes window")
        return Windowed(self._run, self.main, self.along, self.fields)

    def recognise(self, signal: Any, **conditions: Any) -> list[list[int]]:
        """The ids that a recogniser writes for each row of a batch [B, T, C] or [B, C, H, W]: the
        best token of every position, of as many as the network counts for the row, or of all where
        it counts none.

        `conditions` as of `decode`: `lengths` [B] are the places of each row that are heard. Raises
        RequestError for what does not fit, and for a text of more positions than the engine scores.
        """
        names = outputs_of(self.path, self.facts, self.ports)
        scores, *counts = self._asked(self._feed(signal, conditions, 0), names)
        return texts_of(self.path, scores, counts[0] if counts else None)

    def speak(self, signal: Any, **conditions: Any) -> list[Utterance]:
        """What a recogniser writes for each row of a batch, and what the decoder that is joined to
        it makes of it, in one call. Arguments and errors are as of `recognise`."""
        texts = outputs_of(self.path, self.facts, self.ports)
        spoken = spoken_of(self.path, self.ports)
        made = self._asked(self._feed(signal, conditions, 0), [*texts, *spoken])
        *said, decoded, frames = made
        tokens = texts_of(self.path, said[0], said[1] if len(said) > 1 else None)
        rows = cut(self.output, decoded, frames)
        return [Utterance(*row) for row in zip(tokens, rows, strict=True)]

    def fill(
        self,
        canvas: Any,
        *,
        seed: int = 0,
        mask: int | None = None,
        steps: int | None = None,
        full: int | None = None,
        light: int | None = None,
        temperature: float | None = None,
        choice: float | None = None,
        guidance: float | None = None,
        rises: bool | None = None,
        **conditions: Any,
    ) -> Array:
        """Choose a token for every masked position of a batch of canvases [B, N], which have as
        many each; or of so many canvases in which all are masked. Tokens that are there stay.

        `mask` is the id that stands where no token is chosen, where the network does not say it.
        `steps` and all behind it are those of `Filling`, in place of the bundle's own; light steps
        need a bundle made with the pass `canvas-cache`. `conditions` as of `decode`; with guidance
        "unconditional_NAME" are what stands for them in the other branch, and each step is one of
        twice the rows. Raises RequestError for what does not fit.
        """
        if not isinstance(self.facts, CanvasFacts):
            raise RequestError(f"{self.path} is a {self.facts.kind}, which fills no canvas")
        asked = {"steps": steps, "full": full, "light": light, "temperature": temperature,
                 "choice": choice, "guidance": guidance, "rises": rises}  # fmt: skip
        said = {name: number for name, number in asked.items() if number is not None}
        filling = replace(self.facts.filling, **said)
        if filling.light and not self.kept:
            raise RequestError(
                f"{self.path} keeps no features for light steps; rebuild it with --recipe recap"
            )
        mask = mask_of(self.path, self.facts, mask)
        tokens = canvas_of(self.path, self.facts, canvas, mask)
        own, others = branches(self.names, conditions)
        check_guidance(self.path, filling, self.main, others)
        given = self._feed(tokens, own, seed)
        if others:
            given = both(given, self._feed(tokens, own | others, seed))
        step = partial(self._step, given)
        return Filler(step, filling, mask, np.random.default_rng(seed)).fill(tokens)

    def make(self, main: Any, **told: Any) -> Array:
        """What a bundle that writes no texts makes of its main input: `fill` of a canvas, `decode`
        of everything else."""
        return (self.fill if isinstance(self.facts, CanvasFacts) else self.decode)(main, **told)

    def _step(
        self, given: dict[str, Array], tokens: Array, at: Array, kept: dict[str, Array]
    ) -> tuple[Array, dict[str, Array]]:
        """The scores of these positions, and what is kept of all."""
        own = {p.name: at for p in self.ports if p.role == CHOSEN}
        feed = given | {self.main.name: tokens.astype(self.main.dtype)} | own | kept
        scores, *left = self._asked(feed, [self.output.name, *self.kept])
        return scores, dict(zip(self.kept.values(), left, strict=True))

    def _loop(self, steps: int) -> DecodeEngine:
        """The engine of so many steps, opened once."""
        if steps not in self._opened:
            self._opened[steps] = _loop_of(self.path, self.loops, steps)()
        return self._opened[steps]

    def _run(self, feed: dict[str, Array]) -> Array:
        return self._asked(feed, [self.output.name])[0]

    def _run_on(self, feed: dict[str, Array]) -> tuple[Array, dict[str, Array]]:
        """The output of a chunk, and the contexts for the next."""
        made, *held = self._asked(feed, [self.output.name, *self.contexts])
        return made, dict(zip(self.contexts.values(), held, strict=True))

    def _asked(self, feed: dict[str, Array], names: Sequence[str]) -> list[Array]:
        """These outputs. Raises RequestError with ONNX Runtime's own reason, and what a session on
        a GPU raises."""
        try:
            found: list[Any] = self._session.run(list(names), feed)
        except GraftlineError:
            raise
        except Exception as error:  # onnxruntime's exceptions share no public base class
            reason = " ".join(str(error).split())[:300]
            shapes = ", ".join(f"{name} {list(a.shape)}" for name, a in feed.items())
            raise RequestError(f"{self.path} cannot decode {shapes}: {reason}") from error
        return [np.asarray(array) for array in found]


def load_decoder(
    path: str | Path, *, threads: int | None = None, verify: bool = True, steps: int | None = None
) -> DecodeEngine:
    """Open the bundle at `path` of a host that runs once: a decoder of latents, a denoiser or its
    sampling loop, a recogniser; on the GPU where it holds TensorRT engines. `verify`: check the
    hashes of its files; `steps`: open the loop of so many in place of the bundle's own. Raises
    RequestError for a decoder of text and for a number of steps that the bundle does not hold,
    BundleError, or BackendError."""
    bundle = Bundle.open(path, verify=verify)
    manifest = bundle.manifest
    if isinstance(manifest.facts, DecoderFacts):
        raise RequestError(
            f"{path} is a decoder of text; use graftline.load, or graftline run with a prompt in "
            "place of --latents"
        )
    if threads is not None and threads < 1:
        raise RequestError(f"threads={threads} is not valid; use at least 1")
    loops = {
        stage.facts.sampling.steps: partial(_open_stage, bundle, name, threads)
        for name, stage in manifest.stages.items()
        if stage.role in ("engine", "form")
        and isinstance(stage.facts, DenoiserFacts)
        and stage.facts.sampling is not None
        and by_role(stage.ports, NOISE, "in")
    }
    own = partial(_open_stage, bundle, manifest.target, threads)
    engine = (own if steps is None else _loop_of(bundle.path, loops, steps))()
    engine.loops = loops
    return engine


def _loop_of(
    path: Path, loops: Mapping[int, Callable[[], DecodeEngine]], steps: int
) -> Callable[[], DecodeEngine]:
    """What opens the loop of so many steps. Raises RequestError where there is none."""
    if steps not in loops:
        known = ", ".join(map(str, sorted(loops))) or "no loop"
        raise RequestError(f"steps={steps}: {path} holds {known}; build with --steps")
    return loops[steps]


def _open_stage(bundle: Bundle, name: str, threads: int | None) -> DecodeEngine:
    manifest = bundle.manifest
    stage = manifest.stages[name]
    if manifest.target == CPU:
        session = open_graph(bundle.graph(name), threads or os.cpu_count() or 1, plans=False)
    else:
        from graftline.runtimes.trt.load import open_once

        session = open_once(bundle, name)
    export = manifest.stages.get(stage.made_of)
    own = () if export is None else export.ports
    return DecodeEngine(
        bundle.path, stage.facts, stage.ports, own, session, stage.fields, stage.smoothing
    )
