"""A denoiser of two consecutive chunks, called for one: what graphs of a chunk are held to."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from graftline.evaluate import Array, Feed
from graftline.passes.anchors.denoiser import PREDICTION, TIMESTEP
from graftline.roles import BEGUN, LATENTS, PAST, SAMPLE
from graftline.sampling.chunks import Chunks

Call = Callable[[Feed], Feed]
PAST_LATENTS, PAST_NOISE = f"{PAST}_{LATENTS}", f"{PAST}_noise"
"""Inputs beside the chunk before: its latents, and the unit noise that it gets."""
OWN = (LATENTS, PAST, PAST_LATENTS, PAST_NOISE, BEGUN)


def halves(array: Array, axis: int) -> tuple[Array, Array]:
    """Those of two chunks, along an axis."""
    first, second = np.split(array, 2, axis)
    return first, second


def behind(call: Call, chunks: Chunks) -> Call:
    """A call for one chunk of what `call` says of two. A row that has begun has the chunk before in
    front, with its latents; another has its own chunk there, which sees nothing of what follows it.
    """

    def of_one(feed: Feed) -> Feed:
        said = call({k: v for k, v in feed.items() if k not in OWN} | _both(feed, chunks))
        rows = feed[BEGUN]
        first, second = halves(said[PREDICTION], 3)
        own = np.stack([b if row else a for a, b, row in zip(first, second, rows, strict=True)])
        return {PREDICTION: own} | carried(feed)

    return of_one


def carried(feed: Feed) -> Feed:
    """What the next chunk is given, beside this one's sample."""
    return {
        f"{PAST_LATENTS}.next": feed[LATENTS], f"{BEGUN}.next": np.ones_like(feed[BEGUN]),
    }  # fmt: skip


def _both(feed: Feed, chunks: Chunks) -> Feed:
    """What the network is given of both chunks."""
    step = np.broadcast_to(feed[TIMESTEP], feed[BEGUN].shape)
    pairs, latents, levels = list[Array](), list[Array](), list[Array]()
    for row, begun in enumerate(feed[BEGUN]):
        own, own_latents = feed[SAMPLE][row], feed[LATENTS][row]
        front, front_latents, level = own, own_latents, step[row]
        if begun:
            level = np.asarray(chunks.noise, step.dtype) if chunks.timestep else step[row]
            front, front_latents = feed[PAST][row], feed[PAST_LATENTS][row]
            if level:
                front = front + level.astype(front.dtype) * feed[PAST_NOISE][row]
        pairs.append(np.concatenate([front, own], axis=-1))
        latents.append(np.concatenate([front_latents, own_latents], axis=0))
        levels.append(level)
    given = {SAMPLE: np.stack(pairs), chunks.latents: np.stack(latents)}
    return given | ({chunks.timestep: np.stack(levels)} if chunks.timestep else {})
