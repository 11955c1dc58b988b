"""The kind of host that makes a waveform or an image of latents."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from graftline.evaluate import Feed
from graftline.facts import Facts, LatentDecoderFacts
from graftline.kinds.one_pass import OnePass
from graftline.ports import Port, by_role
from graftline.roles import DECODED, LATENTS, LENGTHS

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
        random, turn = np.random.default_rng(seed), seed % len(ROWS)
        latents = by_role(ports, LATENTS, "in")[0]
        along = SIZES[len(latents.shape) - 2 if facts.latents else 1][turn]
        free = {str(latents.shape[0]): ROWS[turn]}
        free |= dict(zip(map(str, latents.shape[-len(along) :]), along, strict=True))
        feed: Feed = {}
        for port in (p for p in ports if p.direction == "in"):
            dims = [d if isinstance(d, int) else free.get(d, OTHER) for d in port.shape]
            dtype = np.dtype(port.dtype)
            if port.role == LENGTHS:
                values = np.full(dims, along[-1])
            elif port.role == LATENTS and facts.codes:
                values = random.integers(0, facts.codes, dims)
            elif dtype.kind in "iu":
                values = np.zeros(dims)  # the first speaker, say: how many there are is not known
            else:
                values = random.standard_normal(dims)
            feed[port.name] = np.asarray(values).astype(dtype)
        return feed
