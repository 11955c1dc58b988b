"""The kind of host that says what of a noisy sample is noise."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from graftline.evaluate import Feed
from graftline.facts import Facts
from graftline.kinds.one_pass import OnePass
from graftline.passes.anchors.denoiser import PREDICTION, SAMPLE, TIMESTEP
from graftline.ports import Port, by_role

SIZES = ({"B": 2, "H": 32, "W": 32}, {"B": 1, "H": 32, "W": 64})
"""What the free dimensions of a sample are, in each feed: multiples of what networks halve."""
OTHER = 7
"""Rows of a condition whose number is free."""
STEPS = ((1, 998), (999,))
"""Time steps of the samples of each feed: networks may do otherwise early and late."""


@dataclass(frozen=True)
class Denoiser(OnePass):
    """A noisy sample and a time step in, a prediction of the sample's size out."""

    name: str = "denoiser"
    output: str = PREDICTION

    def feed(self, ports: tuple[Port, ...], facts: Facts, seed: int) -> Feed:
        """Seeded samples, time steps and conditions."""
        random, sizes = np.random.default_rng(seed), SIZES[seed % len(SIZES)]
        feed: Feed = {}
        sample = by_role(ports, SAMPLE, "in")[0]
        symbols = dict(zip(map(str, sample.shape), ("B", "C", "H", "W"), strict=True))
        for port in (p for p in ports if p.direction == "in"):
            dims = [
                d if isinstance(d, int) else sizes.get(symbols.get(d, ""), OTHER)
                for d in port.shape
            ]
            values = random.standard_normal(dims)
            if port.role == TIMESTEP:
                values = np.resize(STEPS[seed % len(STEPS)], dims)
            feed[port.name] = np.asarray(values).astype(np.dtype(port.dtype))
        return feed
