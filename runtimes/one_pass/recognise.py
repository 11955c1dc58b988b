"""What a recogniser's scores say: the ids of each row's text, and what is spoken beside them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from graftline.errors import RequestError
from graftline.facts import Facts, RecogniserFacts
from graftline.ports import Port, by_role
from graftline.roles import COUNTS, DECODED, FRAMES, SCORES, TRANSITIONS
from graftline.runtimes.one_pass.feeding import Array


@dataclass(frozen=True)
class Utterance:
    """What one row says: the ids of its text, and the spectrogram [F, C] or waveform [C, T] of it,
    of its own frames alone."""

    tokens: list[int]
    decoded: Array


def outputs_of(path: Path, facts: Facts, ports: Sequence[Port]) -> list[str]:
    """The names of the scores and, where the network counts them, of how many positions each row
    has. Raises RequestError for a host that writes no texts, or only scores the vertices of a graph
    that they are paths through."""
    if not isinstance(facts, RecogniserFacts):
        raise RequestError(f"{path} is a {facts.kind}, which writes no texts")
    if by_role(ports, TRANSITIONS, "out"):
        raise RequestError(
            f"{path} scores the vertices of a graph, and no path is found through them; rebuild it "
            "with --passes best-path"
        )
    return [p.name for role in (SCORES, COUNTS) for p in by_role(ports, role, "out")]


def spoken_of(path: Path, ports: Sequence[Port]) -> list[str]:
    """The names of what is spoken and of how many frames each row has. Raises RequestError where
    one of them is no output of a recogniser's."""
    spoken, frames = ([p.name for p in by_role(ports, r, "out")] for r in (DECODED, FRAMES))
    if not spoken:
        raise RequestError(f"{path} does not speak its texts; rebuild it with --recipe daspeech")
    if not frames:
        raise RequestError(
            f"{path}: its decoder does not say how many frames each row has; use `decode`"
        )
    return [*spoken, *frames]


def is_spectrogram(port: Port) -> bool:
    """Whether it is [B, F, C], of a fixed width and any length; a waveform [B, C, T] is not."""
    *rest, length, width = port.shape
    return len(rest) == 1 and isinstance(width, int) and not isinstance(length, int)


def cut(port: Port, decoded: Array, frames: Array) -> list[Array]:
    """Each row of what is spoken, of its own frames."""
    axis = 0 if is_spectrogram(port) else 1
    each: list[int] = np.asarray(frames, np.int64).tolist()
    return [np.take(row, range(count), axis) for row, count in zip(decoded, each, strict=True)]


def texts_of(path: Path, scores: Array, counts: Array | None) -> list[list[int]]:
    """The best token of every position, of scores [B, U, V]; of as many as are counted [B]. Raises
    RequestError for a text of more positions than there are."""
    best: list[list[int]] = scores.argmax(-1).tolist()
    if counts is None:
        return best
    each: list[int] = np.asarray(counts, np.int64).tolist()
    if max(each, default=0) > scores.shape[1]:
        raise RequestError(
            f"{path}: a text of {max(each)} positions, and the engine scores {scores.shape[1]}; "
            "give shorter signals, or rebuild it with more: "
            f"--passes pad-positions{{positions={max(each)}}}"
        )
    return [ids[:count] for ids, count in zip(best, each, strict=True)]
