"""Precisions of one model beside each other: how fast each decodes here, and how well it predicts.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import median

import numpy as np

from graftline.runtimes.session import Ints, Session
from graftline.runtimes.study.perplexity import perplexity

ROUNDS, STEPS, PROMPT = 9, 8, 24
"""Rounds in which every precision decodes in turn, steps of each, and tokens in front of them."""


@dataclass(frozen=True)
class Point:
    """A precision as measured: `perplexity` on the text, `rate` in tokens per second of plain
    decoding, `size` of its own weights in bytes. `best`: none is both faster and better."""

    name: str
    perplexity: float
    rate: float
    size: int
    best: bool = False


def measure(
    sessions: Mapping[str, tuple[Session, int]], text: Ints, watch: Callable[[str], None]
) -> list[Point]:
    """Points of the sessions (each with the bytes of its weights), the fastest first."""
    found: dict[str, float] = {}
    for name, (session, _) in sessions.items():
        watch(f"perplexity of {name} on {len(text)} tokens")
        found[name] = perplexity(session, [text])
    watch(f"decoding with {len(sessions)} precisions in turn, {ROUNDS} rounds")
    times: dict[str, list[float]] = {name: [] for name in sessions}
    for _ in range(ROUNDS):
        for name, (session, _) in sessions.items():
            times[name].append(_decode(session, text))
    rates = {name: STEPS / median(seen) for name, seen in times.items()}
    points = [Point(name, found[name], rates[name], sessions[name][1]) for name in sessions]
    return marked(points)


def marked(points: Sequence[Point]) -> list[Point]:
    """The fastest first, with those marked that none beats in both speed and perplexity."""
    made: list[Point] = []
    least = float("inf")
    for point in sorted(points, key=lambda p: (-p.rate, p.perplexity)):
        made.append(replace(point, best=point.perplexity < least))
        least = min(least, point.perplexity)
    return made


def chosen(points: Sequence[Point], reference: str, most_loss: float) -> Point:
    """The fastest whose perplexity is above that of `reference` by `most_loss` (a share) at most;
    `reference` itself always is."""
    limit = next(p.perplexity for p in points if p.name == reference) * (1 + most_loss)
    return max((p for p in points if p.perplexity <= limit), key=lambda p: p.rate)


def _decode(session: Session, text: Ints) -> float:
    """Seconds of a few steps of one row, the first of them apart."""
    session.reset(1)
    session.prefill([text[:PROMPT]])
    began = 0.0
    for at in range(STEPS + 1):
        if at == 1:
            began = time.perf_counter()
        session.score(np.asarray(text[None, PROMPT + at : PROMPT + at + 1]))
        session.commit([range(1)])
    return time.perf_counter() - began
