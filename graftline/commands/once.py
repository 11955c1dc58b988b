"""Bundles that run once, measured: latency, memory and what fewer steps cost."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import product
from time import perf_counter
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from graftline.commands import screen
from graftline.commands.peak import Peak, peak_of
from graftline.errors import RequestError
from graftline.facts import CanvasFacts, RecogniserFacts
from graftline.files import told_size
from graftline.kinds import kind_of
from graftline.kinds.one_pass import OnePass
from graftline.roles import CHOSEN, FRESH, NOISE, SEED
from graftline.runtimes.one_pass.feeding import by_port, fitted, keyword
from graftline.runtimes.one_pass.fill import canvas_of, mask_of

if TYPE_CHECKING:
    from graftline.bundle.writer import Watch
    from graftline.runtimes.one_pass.engine import DecodeEngine

Array = npt.NDArray[Any]
Options = dict[str, int]
"""Of `DecodeEngine.decode`: the way an output is made."""
LEAST = 5
"""Runs of which a median is taken."""
LENGTH = 64
"""Places along a free axis of an input that is drawn."""
WINDOWS = 4
"""Windows' lengths of latents that are drawn for a bundle with windows."""


@dataclass(frozen=True)
class Feed:
    """What a bundle is given: the input that it makes its output of, and conditions by name."""

    main: Array
    conditions: Mapping[str, Array]


@dataclass(frozen=True)
class Way:
    """One way to make the output. Times are medians, in seconds."""

    name: str
    options: Options
    whole: float
    first: float | None
    """Until the first window's output; None where it is no stream."""
    peak: Peak | None
    psnr: float | None
    """In decibels, against the most steps; None where there is nothing to compare, or for them."""


@dataclass(frozen=True)
class Found:
    """All ways, the shapes of the input and the output, and how often each ran."""

    ways: tuple[Way, ...]
    given: tuple[int, ...]
    made: tuple[int, ...]
    runs: int


def feed_for(
    engine: DecodeEngine,
    main: Array | None,
    conditions: Mapping[str, Array],
    length: int | None,
    seed: int,
) -> Feed:
    """What was given, completed by seeded numbers as the kind of host is fed in its laws. A free
    batch is one row, and other free axes of the main input are `length` long. Raises RequestError
    for what does not fit."""
    if main is None and isinstance(facts := engine.facts, CanvasFacts):
        main = canvas_of(engine.path, facts, 1, mask_of(engine.path, facts, None))
    inputs, first = [p for p in engine.ports if p.direction == "in"], engine.main
    values = by_port(first.name, engine.names, main, conditions)
    sizes: dict[str, int] = {}
    held = {p.name: fitted(p, values[p.name], sizes) for p in inputs if p.name in values}
    shared = () if engine.smoothing is None else (engine.smoothing,)
    along = {one.axis: WINDOWS * one.size for one in (*engine.fields, *shared)}
    for axis, dim in enumerate(first.shape):
        if isinstance(dim, str):
            sizes.setdefault(dim, 1 if axis == 0 else length or along.get(axis, LENGTH))
    sized = [
        replace(p, shape=tuple(sizes.get(d, d) if isinstance(d, str) else d for d in p.shape))
        for p in inputs
    ]
    kind = kind_of(engine.facts)
    assert isinstance(kind, OnePass), "a bundle that runs once was opened"
    held = kind.feed(tuple(sized), engine.facts, seed) | held
    own = {p.name for p in inputs if p.role in (CHOSEN, FRESH, NOISE, SEED) or p.state}
    drawn = own - set(values)
    rest = {n: v for n, v in held.items() if n != first.name and n not in drawn}
    return Feed(held[first.name], {keyword(n): v for n, v in rest.items()})


def measured(
    engine: DecodeEngine,
    feed: Feed,
    repeat: int | None,
    seed: int,
    threads: int | None,
    between: tuple[float, float] | None,
    watch: Watch,
) -> Found:
    """Every way in turn, again and again, so that what disturbs the machine disturbs all alike.
    Raises RequestError for too few runs, and for what does not fit the bundle."""
    if repeat is not None and repeat < LEAST:
        raise RequestError(f"--repeat {repeat}: a latency is the median of at least {LEAST} runs")
    runs = repeat or LEAST
    ways = dict(_ways(engine))
    made: dict[str, Array] = {}
    for name, options in ways.items():
        watch(f"warming up: {name}")
        made[name] = run(engine, feed, seed, options)
    whole: dict[str, list[float]] = {name: [] for name in ways}
    first: dict[str, list[float]] = {n: [] for n, o in ways.items() if _streams(engine, o)}
    for turn, (name, options) in product(range(runs), ways.items()):
        watch(f"run {turn + 1} of {runs}: {name}")
        whole[name].append(_seconds(lambda o=options: run(engine, feed, seed, o)))
        if name in first:
            first[name].append(_seconds(lambda o=options: _begun(engine, feed, seed, o)))
    psnr = _psnrs(ways, made, between)
    found: list[Way] = []
    for name, options in ways.items():
        watch(f"memory, in a process of its own: {name}")
        given = (feed.main, feed.conditions, {"seed": seed, **options})
        peak = peak_of(engine.path, threads, isinstance(engine.facts, RecogniserFacts), *given)
        begun = statistics.median(first[name]) if name in first else None
        middle = statistics.median(whole[name])
        found.append(Way(name, options, middle, begun, peak, psnr.get(name)))
    output = next(iter(made.values()))
    return Found(tuple(found), feed.main.shape, output.shape, runs)


def run(engine: DecodeEngine, feed: Feed, seed: int, options: Options) -> Array:
    """The output of one way; of a recogniser, how many tokens each row has."""
    if isinstance(engine.facts, RecogniserFacts):
        return np.asarray([len(ids) for ids in engine.recognise(feed.main, **feed.conditions)])
    told: dict[str, Any] = {"seed": seed, **options, **feed.conditions}
    return engine.make(feed.main, **told)


def _ways(engine: DecodeEngine) -> Iterator[tuple[str, Options]]:
    if isinstance(engine.facts, CanvasFacts):
        yield "full steps alone", {"light": 0}
        if engine.facts.filling.light:
            yield engine.facts.filling.told(), {}
        return
    if len(engine.loops) > 1:
        for steps in sorted(engine.loops):
            yield "one step" if steps == 1 else f"{steps} steps", {"steps": steps}
        return
    yield "whole", {"window": 0} if engine.fields else {}
    if engine.fields:
        size = max(f.size for f in engine.fields)
        yield f"windows of {size}", {"window": size}
    if engine.smoothing is not None:
        size = engine.smoothing.size
        yield f"smoothed windows of {size}", {"window": size}


def _streams(engine: DecodeEngine, options: Options) -> bool:
    """Whether a way gives its output piece by piece."""
    return bool(options.get("window")) and len(engine.fields) < 2


def _begun(engine: DecodeEngine, feed: Feed, seed: int, options: Options) -> Array:
    told: dict[str, Any] = {"seed": seed, **options, **feed.conditions}
    return next(iter(engine.stream_decode(feed.main, **told)))


def _seconds(call: Callable[[], Any]) -> float:
    began = perf_counter()
    call()
    return perf_counter() - began


def _psnrs(
    ways: Mapping[str, Options], made: Mapping[str, Array], between: tuple[float, float] | None
) -> dict[str, float]:
    """Of every number of steps but the most, by the name of the way."""
    steps = {name: o["steps"] for name, o in ways.items() if "steps" in o}
    if len(steps) < 2:
        return {}
    most = max(steps, key=lambda name: steps[name])
    return {n: psnr(made[n], made[most], between) for n in steps if n != most}


def psnr(made: Array, expected: Array, between: tuple[float, float] | None = None) -> float:
    """Peak signal-to-noise ratio in decibels, 20 log10(range / root mean square error), infinite
    for equal arrays. The range is that of `between`, to which numbers are clipped, or that of the
    expected numbers."""
    low, high = between or (float(expected.min()), float(expected.max()))
    a, b = (x.astype(np.float64) for x in (made, expected))
    if between is not None:
        a, b = np.clip(a, low, high), np.clip(b, low, high)
    error = float(np.sqrt(np.mean((a - b) ** 2)))
    if not error:
        return float("inf")
    return float(20 * np.log10((high - low) / error)) if high > low else float("-inf")


def table(found: Found) -> Any:
    """Of all ways."""
    shapes = f"{list(found.given)} in, {list(found.made)} out; medians of {found.runs} runs"
    columns = ("", "latency#", "first window#", "opened#", "peak memory#", "PSNR#")
    rows = [
        (
            way.name,
            f"{way.whole * 1e3:.2f} ms",
            "-" if way.first is None else f"{way.first * 1e3:.2f} ms",
            "-" if way.peak is None else told_size(way.peak.opened),
            "-" if way.peak is None else told_size(way.peak.run),
            "-" if way.psnr is None else f"{way.psnr:.2f} dB",
        )
        for way in found.ways
    ]
    return screen.table(shapes, columns, rows)


def report(found: Found) -> dict[str, Any]:
    """The same for a program: seconds, bytes and decibels; null for what was not measured, and for
    the PSNR of equal outputs, which no JSON number is."""
    ways = {
        way.name: {
            **way.options,
            "seconds": way.whole,
            "first_window_seconds": way.first,
            "opened_bytes": None if way.peak is None else way.peak.opened,
            "peak_bytes": None if way.peak is None else way.peak.run,
            "psnr": way.psnr if way.psnr is not None and np.isfinite(way.psnr) else None,
        }
        for way in found.ways
    }
    shapes = {"input": list(found.given), "output": list(found.made)}
    return {**shapes, "runs": found.runs, "ways": ways}
