"""The random numbers of rules that draw one number per chosen token, by seed and place."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from graftline.plugins.uniforms import reference

BLOCK = 256
"""Numbers made at once: one call of numpy costs as much as the arithmetic of hundreds."""


@dataclass
class Uniforms:
    """Numbers in [0, 1) of 24 bits: the k-th is the plugin `Uniforms` at (seed, step k), place
    (0, 0).

    A number follows from the seed and from how many tokens were chosen before, and from nothing
    else. So a graph that verifies on the device draws the very same, and a seed's text depends on
    no draft, batch or backend. `seed` is in [0, 2^63).
    """

    seed: int
    ordinal: int = 0
    """Which number comes next."""
    _block: list[float] = field(default_factory=list[float], init=False, repr=False)
    _first: int = field(default=0, init=False, repr=False)
    """Ordinal of the first number of `_block`."""

    @classmethod
    def of(cls, generator: np.random.Generator) -> Uniforms:
        """Numbers under a seed drawn from `generator`."""
        return cls(int(generator.integers(1 << 63)))

    def random(self) -> float:
        """The next number."""
        place = self.ordinal - self._first
        if not 0 <= place < len(self._block):
            steps = np.arange(self.ordinal, self.ordinal + BLOCK)
            (numbers,) = reference(np.full(BLOCK, self.seed), steps, rows=1)
            self._block, self._first, place = numbers[:, 0, 0].tolist(), self.ordinal, 0
        self.ordinal += 1
        return self._block[place]
