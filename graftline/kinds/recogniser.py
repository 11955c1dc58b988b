"""The kind of host that writes a text in one pass."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from graftline.errors import LawBroken
from graftline.evaluate import Feed
from graftline.facts import Facts
from graftline.kinds.kind import Parts
from graftline.kinds.one_pass import FEEDS, Array, OnePass
from graftline.law import LawRow
from graftline.ports import Port, by_role
from graftline.roles import COUNTS, LENGTHS, SCORES, SIGNAL

ROWS, LONG, HEIGHT = (2, 1), (40, 56), 32
"""Rows of each feed, places of its signal, and the height of an image: multiples of what networks
halve."""


@dataclass(frozen=True)
class Recogniser(OnePass):
    """A signal in, scores of the tokens of all positions out."""

    name: str = "recogniser"
    output: str = SCORES

    def feed(self, ports: tuple[Port, ...], facts: Facts, seed: int) -> Feed:
        """A seeded signal; all rows but the first are shorter than it."""
        random, turn = np.random.default_rng(seed), seed % len(ROWS)
        signal = by_role(ports, SIGNAL, "in")[0]
        rank, sizes = len(signal.shape), (ROWS[turn], LONG[turn])
        free = {0: sizes[0], 1: sizes[1]} if rank == 3 else {0: sizes[0], 2: HEIGHT, 3: sizes[1]}
        dims = [d if isinstance(d, int) else free[n] for n, d in enumerate(signal.shape)]
        feed = {signal.name: random.standard_normal(dims).astype(np.dtype(signal.dtype))}
        for port in by_role(ports, LENGTHS, "in"):
            long = dims[1 if rank == 3 else 3]
            shorter = np.arange(dims[0]) * (long // 4)
            feed[port.name] = (long - shorter).astype(np.dtype(port.dtype))
        return feed

    def _names(self, ports: tuple[Port, ...]) -> list[str]:
        """The scores, and how many positions of each row count."""
        return [p.name for role in (SCORES, COUNTS) for p in by_role(ports, role, "out")]

    def _whole(self, parts: Parts, stage: str) -> LawRow:
        """Of the positions that are counted, a stage scores all as the export does. One that counts
        them itself counts as many as the export scores."""
        ports, own = parts.ports(stage), parts.ports(parts.export)
        got, expected = self._outputs(parts, stage), self._outputs(parts, parts.export)
        each, theirs = (len(outputs) // FEEDS for outputs in (got, expected))
        found = list[Array]()
        for place in range(FEEDS):
            scores, owed = got[place * each], expected[place * theirs]
            if by_role(ports, COUNTS, "out") and not by_role(own, COUNTS, "out"):
                counted = int(got[place * each + 1].max())
                if counted != owed.shape[1]:
                    by = f"counts {counted} positions of a text of {owed.shape[1]}"
                    raise LawBroken(stage, "whole", f"'{COUNTS}'", by)
            most = min(owed.shape[1], scores.shape[1])  # an engine may be made for shorter texts
            expected[place * theirs] = owed[:, :most]
            found += [scores[:, :most], *got[place * each + 1 : place * each + theirs]]
        return self._same(parts, "whole", stage, found, expected)
