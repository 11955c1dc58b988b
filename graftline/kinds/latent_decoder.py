"""The kind of host that makes a waveform or an image of latents."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from graftline.errors import GraftlineError, LawBroken
from graftline.evaluate import Array, Feed
from graftline.facts import Facts, LatentDecoderFacts
from graftline.kinds.kind import Parts, Proof, Watch
from graftline.kinds.one_pass import OnePass
from graftline.law import LawRow
from graftline.ports import Port, by_role
from graftline.receptive_field import ReceptiveField
from graftline.roles import DECODED, LATENTS, LENGTHS
from graftline.runtimes.one_pass.windows import cut_along
from graftline.smoothing import Smoothing

if TYPE_CHECKING:
    from graftline.models.reference import OwnModel
    from graftline.runtimes.one_pass.engine import DecodeEngine

WINDOWED = 1e-5
"""Most that windows may differ from the whole, relative to its largest number: sums of the same
numbers in another order."""
CHUNKS = 5
"""Chunks of the stream that is compared."""
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

    def prove(self, parts: Parts, own: OwnModel | Path | None, gone: str, say: Watch) -> Proof:
        """Outputs, and those of windows beside the whole's."""
        proof = super().prove(parts, own, gone, say)
        if fields := parts.stages[parts.engine].fields:
            say("proof: windows against the whole, with the real weights")
            proof.laws.append(windowed(parts, fields))
        if (how := parts.stages[parts.engine].smoothing) is not None:
            say("proof: smoothed windows against windows joined by hand, and the whole")
            proof.laws += smoothed(parts, how)
        return proof


def windowed(parts: Parts, fields: tuple[ReceptiveField, ...]) -> LawRow:
    """Law windowed: what windows make, the smallest and usual ones, and a stream of chunks, is what
    the whole makes at once. The whole is longer than two of the smallest. Raises LawBroken."""
    from graftline.runtimes.one_pass.engine import DecodeEngine
    from graftline.runtimes.ort.graph import open_graph

    facts, ports = parts.facts, parts.ports(parts.engine)
    assert isinstance(facts, LatentDecoderFacts)
    session = open_graph(parts.graph(parts.engine), 0)
    engine = DecodeEngine(parts.folder, facts, ports, (), session, fields)
    along = tuple(2 * f.least + 3 * f.step for f in fields)
    main = engine.main.name
    given: dict[str, Any] = _feed(ports, facts, 1, 1, along)
    feed = {name.replace(".", "_"): value for name, value in given.items()}
    latents = feed.pop(main)
    try:
        ways = _ways(engine, latents, feed)
    except GraftlineError as error:
        raise LawBroken(parts.engine, "windowed", "'decoded'", str(error)) from error
    whole = engine.decode(latents, window=0, **feed)
    scale = max(float(np.max(np.abs(whole))), 1e-30)
    worst = 0.0
    for way, made in ways.items():
        if made.shape != whole.shape:
            raise LawBroken(parts.engine, "windowed", way, f"{made.shape} != {whole.shape}")
        gap = float(np.max(np.abs(made.astype(np.float64) - whole))) / scale
        if not gap <= WINDOWED:
            raise LawBroken(parts.engine, "windowed", way, f"{gap:.3g} > {WINDOWED:g}")
        worst = max(worst, gap)
    what = f"{' and '.join(ways)} of {' x '.join(map(str, along))} latents are the whole"
    return LawRow(parts.engine, "windowed", "held", what, worst, WINDOWED)


def smoothed(parts: Parts, how: Smoothing) -> list[LawRow]:
    """Law smoothed: a stream, of an array and of chunks, is the sum of windows that are decoded one
    by one, each weighted by how near its elements are to ends that it shares. And how far that is
    from the whole, which nothing bounds. Raises LawBroken."""
    from graftline.runtimes.one_pass.engine import DecodeEngine
    from graftline.runtimes.ort.graph import open_graph

    facts, ports = parts.facts, parts.ports(parts.engine)
    assert isinstance(facts, LatentDecoderFacts)
    session = open_graph(parts.graph(parts.engine), 0)
    engine = DecodeEngine(parts.folder, facts, ports, (), session, smoothing=how)
    count, main = 2 * how.size + how.stride // 2, engine.main.name
    given: dict[str, Any] = _feed(ports, facts, 1, 1, (count,))
    whole, expected = (of(engine, given) for of in (_at_once, partial(_summed, how=how)))
    feed = {name.replace(".", "_"): v for name, v in given.items() if name != main}
    made = {f"windows of {how.size}": list(engine.stream_decode(given[main], **feed))}
    if len(engine.along) == 1:
        chunks = np.array_split(given[main], CHUNKS, axis=how.axis)
        made[f"a stream of {CHUNKS} chunks"] = list(engine.stream_decode(iter(chunks), **feed))
    scale, worst = max(float(np.max(np.abs(expected))), 1e-30), 0.0
    for way, pieces in made.items():
        joined = np.concatenate(pieces, axis=how.out_axis).astype(np.float64)
        if joined.shape != expected.shape:
            raise LawBroken(parts.engine, "smoothed", way, f"{joined.shape} != {expected.shape}")
        gap = float(np.max(np.abs(joined - expected))) / scale
        if not gap <= WINDOWED:
            raise LawBroken(parts.engine, "smoothed", way, f"{gap:.3g} > {WINDOWED:g}")
        worst = max(worst, gap)
    what = f"{' and '.join(made)} of {count} latents are windows decoded one by one"
    apart = float(np.sqrt(np.mean((expected - whole) ** 2) / max(np.mean(whole**2), 1e-30)))
    far = f"{DECODED} in smoothed windows beside the whole, root mean squares"
    return [
        LawRow(parts.engine, "smoothed", "held", what, worst, WINDOWED),
        LawRow(parts.engine, "smoothed-whole", "measured", far, apart),
    ]


def _at_once(engine: DecodeEngine, given: Feed) -> Array:
    feed: dict[str, Any] = {
        n.replace(".", "_"): v for n, v in given.items() if n != engine.main.name
    }
    return engine.decode(given[engine.main.name], window=0, **feed).astype(np.float64)


def _summed(engine: DecodeEngine, given: Feed, how: Smoothing) -> Array:
    """Windows decoded one by one, and their weighted sum."""
    main, count = engine.main, given[engine.main.name].shape[how.axis]
    begins = range(0, max(count - how.overlap, 1), how.stride)
    fade, total = how.ratio * how.overlap, 0.0
    for begin in begins:
        stretch = slice(begin, min(begin + how.size, count))
        part = given | cut_along(given, engine.along, main.shape[how.axis], stretch)
        made = _at_once(engine, part)
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
        chunks = np.array_split(latents, CHUNKS, axis=fields[0].axis)
        pieces = list(engine.stream_decode(iter(chunks), **given))
        ways[f"a stream of {CHUNKS} chunks"] = np.concatenate(pieces, axis=fields[0].out_axis)
    return ways


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
        elif port.role == LATENTS and facts.codes:
            values = random.integers(0, facts.codes, dims)
        elif dtype.kind in "iu":
            values = np.zeros(dims)  # the first speaker, say: how many there are is not known
        else:
            values = random.standard_normal(dims)
        feed[port.name] = np.asarray(values).astype(dtype)
    return feed
