"""The kind of host that makes a waveform or an image of latents."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from graftline.errors import GraftlineError, LawBroken
from graftline.evaluate import Array, Feed
from graftline.facts import Facts, LatentDecoderFacts
from graftline.kinds.kind import Parts, Proof, Watch
from graftline.kinds.one_pass import OnePass
from graftline.law import LawRow
from graftline.passes.laws.compare import TOLERANCE
from graftline.ports import Port, by_role
from graftline.receptive_field import ReceptiveField
from graftline.roles import CONTEXT, DECODED, LATENTS, LENGTHS
from graftline.runtimes.one_pass.feeding import keyword
from graftline.runtimes.one_pass.windows import cut_along
from graftline.smoothing import Smoothing

if TYPE_CHECKING:
    from graftline.models.reference import Original
    from graftline.runtimes.one_pass.engine import DecodeEngine

WINDOWED = 1e-5
"""Most that windows may differ from the whole, relative to its largest number: sums of the same
numbers in another order."""
LEAST = 1e-30
"""In place of a largest number that is zero."""
CHUNKS = 5
"""Chunks of the stream that is compared."""
PIECE = 3
"""Latents of a piece: fewer than most contexts have."""
ROWS = (2, 1)
"""Rows of each feed."""
SIZES = {1: ((24,), (40,)), 2: ((16, 24), (24, 16))}
"""Latents along the axes of a waveform and of an image, in each feed: multiples of what networks
halve."""
OTHER = 7
"""Rows of a condition whose number is free."""


@dataclass(frozen=True)
class LatentDecoder(OnePass):
    """Latents in, a waveform or an image out."""

    name: str = "latent-decoder"
    output: str = DECODED

    def feed(self, ports: tuple[Port, ...], facts: Facts, seed: int) -> Feed:
        """Seeded latents and conditions; every row is as long as its latents."""
        assert isinstance(facts, LatentDecoderFacts)
        turn = seed % len(ROWS)
        return _feed(ports, facts, seed, ROWS[turn], SIZES[facts.axes][turn])

    def prove(self, parts: Parts, own: Original | None, gone: str, say: Watch) -> Proof:
        """Outputs, and those of windows beside the whole's."""
        proof = super().prove(parts, own, gone, say)
        if parts.dtype == "bf16":
            return proof  # its row says why nothing of the engine was run
        if fields := parts.stages[parts.engine].fields:
            say("proof: windows against the whole, with the real weights")
            proof.laws.append(windowed(parts, fields))
        if (how := parts.stages[parts.engine].smoothing) is not None:
            say("proof: smoothed windows against windows joined by hand, and the whole")
            proof.laws += smoothed(parts, how)
        if by_role(parts.ports(parts.engine), CONTEXT):
            say("proof: chunks with carried contexts against the whole, with the real weights")
            proof.laws.append(carried(parts))
        return proof


def carried(parts: Parts) -> LawRow:
    """Law carried: chunks one after another, each with the contexts that the last has left, and
    pieces of an array, are what the whole makes at once. Raises LawBroken."""
    engine, count = _opened(parts), SIZES[1][1][0]
    latents, feed = _given(engine, (count,))
    ways = {f"pieces of {PIECE}": engine.decode(latents, window=PIECE, **feed)}
    if len(engine.along) == 1:
        pieces = engine.stream_decode(iter(np.array_split(latents, CHUNKS, axis=-1)), **feed)
        ways[f"a stream of {CHUNKS} chunks"] = np.concatenate(list(pieces), axis=-1)
    worst = _furthest(parts, "carried", ways, engine.decode(latents, **feed))
    what = f"{' and '.join(ways)} of {count} latents are the whole"
    return LawRow(parts.engine, "carried", "held", what, worst, allowed(parts))


def windowed(parts: Parts, fields: tuple[ReceptiveField, ...]) -> LawRow:
    """Law windowed: what windows make, the smallest and usual ones, and a stream of chunks, is what
    the whole makes at once. The whole is longer than two of the smallest. Raises LawBroken."""
    engine, along = _opened(parts, fields), tuple(2 * f.least + 3 * f.step for f in fields)
    latents, feed = _given(engine, along)
    try:
        ways = _ways(engine, latents, feed)
    except GraftlineError as error:
        raise LawBroken(parts.engine, "windowed", "'decoded'", str(error)) from error
    worst = _furthest(parts, "windowed", ways, engine.decode(latents, window=0, **feed))
    what = f"{' and '.join(ways)} of {' x '.join(map(str, along))} latents are the whole"
    return LawRow(parts.engine, "windowed", "held", what, worst, allowed(parts))


def smoothed(parts: Parts, how: Smoothing) -> list[LawRow]:
    """Law smoothed: a stream, of an array and of chunks, is the sum of windows that are decoded one
    by one, each weighted by how near its elements are to ends that it shares. And how far that is
    from the whole, which nothing bounds. Raises LawBroken."""
    engine, count = _opened(parts, smoothing=how), 2 * how.size + how.stride // 2
    latents, feed = _given(engine, (count,))
    whole = engine.decode(latents, window=0, **feed).astype(np.float64)
    pieces = list(engine.stream_decode(latents, **feed))
    ways = {f"windows of {how.size}": np.concatenate(pieces, axis=how.out_axis)}
    if len(engine.along) == 1:
        ways |= _streamed(engine, latents, feed, how)
    expected = _summed(engine, latents, feed, how)
    worst = _furthest(parts, "smoothed", ways, expected)
    what = f"{' and '.join(ways)} of {count} latents are windows decoded one by one"
    apart = float(np.sqrt(np.mean((expected - whole) ** 2) / max(np.mean(whole**2), LEAST)))
    far = f"{DECODED} in smoothed windows beside the whole, root mean squares"
    return [
        LawRow(parts.engine, "smoothed", "held", what, worst, allowed(parts)),
        LawRow(parts.engine, "smoothed-whole", "measured", far, apart),
    ]


def allowed(parts: Parts) -> float:
    """Most that windows of an engine may differ from the whole. In 16 bits a sum in another order
    may round to the next number, and all behind it follow."""
    return WINDOWED if parts.facts.dtype == "float32" else TOLERANCE[parts.facts.dtype]


def _opened(
    parts: Parts, fields: tuple[ReceptiveField, ...] = (), smoothing: Smoothing | None = None
) -> DecodeEngine:
    from graftline.runtimes.one_pass.engine import DecodeEngine
    from graftline.runtimes.ort.graph import open_graph

    session = open_graph(parts.graph(parts.engine), 0)
    ports = parts.ports(parts.engine)
    return DecodeEngine(parts.folder, parts.facts, ports, (), session, fields, smoothing)


def _given(engine: DecodeEngine, along: tuple[int, ...]) -> tuple[Array, dict[str, Any]]:
    """A row of latents, so long along each axis, and conditions by what callers call them."""
    assert isinstance(engine.facts, LatentDecoderFacts)
    feed = _feed(engine.ports, engine.facts, 1, 1, along)
    latents = feed.pop(engine.main.name)
    held = set(engine.contexts.values())
    return latents, {keyword(name): v for name, v in feed.items() if name not in held}


def _furthest(parts: Parts, law: str, ways: dict[str, Array], expected: Array) -> float:
    """How far any of the ways is from what is expected, relative to its largest number. Raises
    LawBroken above what is allowed."""
    scale, worst = max(float(np.max(np.abs(expected))), LEAST), 0.0
    limit = allowed(parts)
    for way, made in ways.items():
        if made.shape != expected.shape:
            raise LawBroken(parts.engine, law, way, f"{made.shape} != {expected.shape}")
        gap = float(np.max(np.abs(made.astype(np.float64) - expected))) / scale
        if not gap <= limit:
            raise LawBroken(parts.engine, law, way, f"{gap:.3g} > {limit:g}")
        worst = max(worst, gap)
    return worst


def _summed(
    engine: DecodeEngine, latents: Array, given: dict[str, Any], how: Smoothing
) -> Array:
    """Windows decoded one by one, and their weighted sum."""
    main, count = engine.main, latents.shape[how.axis]
    feed = {main.name: latents} | {engine.names[name]: value for name, value in given.items()}
    begins = range(0, max(count - how.overlap, 1), how.stride)
    fade, total = how.ratio * how.overlap, 0.0
    for begin in begins:
        stretch = slice(begin, min(begin + how.size, count))
        part = feed | cut_along(feed, engine.along, main.shape[how.axis], stretch)
        held: dict[str, Any] = {keyword(n): v for n, v in part.items() if n != main.name}
        made = engine.decode(part[main.name], window=0, **held).astype(np.float64)
        long = np.arange(made.shape[how.out_axis]) + 0.5
        front = np.minimum(long / fade, 1) if begin else np.ones(len(long))
        behind = np.minimum(long[::-1] / fade, 1) if begin != begins[-1] else np.ones(len(long))
        sides = [(0, 0)] * made.ndim
        sides[how.out_axis] = (how.ratio * begin, how.ratio * count - how.ratio * stretch.stop)
        shape = [1] * made.ndim
        shape[how.out_axis] = len(long)
        total = total + np.pad((front * behind).reshape(shape) * made, sides)
    return np.asarray(total)


def _ways(engine: DecodeEngine, latents: Array, given: dict[str, Any]) -> dict[str, Array]:
    """What every way to decode in windows makes, by what it is."""
    fields = engine.fields
    sizes = {max(f.least for f in fields), max(f.size for f in fields)}
    ways = {f"windows of {n}": engine.decode(latents, window=n, **given) for n in sorted(sizes)}
    if len(fields) == 1 and len(engine.along) == 1:
        ways |= _streamed(engine, latents, given, fields[0])
    return ways


def _streamed(
    engine: DecodeEngine, latents: Array, given: dict[str, Any], along: ReceptiveField | Smoothing
) -> dict[str, Array]:
    """What chunks of latents make, by what they are."""
    chunks = np.array_split(latents, CHUNKS, axis=along.axis)
    pieces = list(engine.stream_decode(iter(chunks), **given))
    return {f"a stream of {CHUNKS} chunks": np.concatenate(pieces, axis=along.out_axis)}


def _feed(
    ports: tuple[Port, ...], facts: LatentDecoderFacts, seed: int, rows: int, along: tuple[int, ...]
) -> Feed:
    """Values for so many rows of latents, so long along each axis."""
    random = np.random.default_rng(seed)
    latents = by_role(ports, LATENTS, "in")[0]
    free = {str(latents.shape[0]): rows}
    free |= dict(zip(map(str, latents.shape[-len(along) :]), along, strict=True))
    length = latents.shape[-1]
    feed: Feed = {}
    for port in (p for p in ports if p.direction == "in"):
        dims = [d if isinstance(d, int) else free.get(d, OTHER) for d in port.shape]
        dtype = np.dtype(port.dtype)
        if port.role == LENGTHS:
            values = np.full(dims, along[-1] if isinstance(length, str) else length)
        elif port.state == "running":
            values = np.zeros(dims)
        elif port.role == LATENTS and facts.codes:
            values = random.integers(0, facts.codes, dims)
        elif dtype.kind in "iu":
            values = np.zeros(dims)  # the first speaker, say: how many there are is not known
        else:
            values = random.standard_normal(dims)
        feed[port.name] = np.asarray(values).astype(dtype)
    return feed
