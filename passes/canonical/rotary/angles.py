"""Position-dependent values that heads are turned by, one row per position."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from graftline.evaluate import Array
from graftline.passes.canonical.lengths import constants_above, lengths_around
from graftline.passes.canonical.shapes import Measures
from graftline.passes.graph.mismatch import Mismatch


@dataclass
class Angles:
    """Such values at positions 0 .. P-1, P being `rows`; `own_positions`: the host takes positions
    as an input, in any order."""

    measures: Measures
    own_positions: bool
    rows: int
    rows_of: dict[ir.Value, Array] = field(default_factory=dict[ir.Value, Array])

    def read(self, angles: list[ir.Value]) -> Mismatch | None:
        """Reads the position-dependent values at positions 0 .. P-1, for one batch row; the first
        one of which a row depends on other positions than its own, else None."""
        for angle in angles:
            if angle in self.rows_of:
                continue
            rows = self.measures.world(1, self.rows).value(angle)
            axis = (self.measures.dims(angle) or []).index("N")
            lengths = lengths_around(constants_above([angle]))
            looks = [np.arange(n) for n in lengths if n <= self.rows]
            if self.own_positions:
                looks.append(np.asarray([self.rows - 1, 3, 0, 2, 1]))
            for at in looks:
                short = self.measures.world(1, len(at))
                short.known[self.measures.positions] = at[None].astype(np.int64)
                if not np.allclose(short.value(angle), np.take(rows, at, axis=axis), atol=1e-5):
                    return self._until(angle, axis)
            self.rows_of[angle] = rows
        return None

    def _until(self, angle: ir.Value, axis: int) -> Mismatch:
        """That angles depend on other positions than their own, with the length up to which they do
        not, where there is one."""
        steady, before = 0, np.empty(0)
        for n in (n for n in lengths_around(constants_above([angle])) if n <= self.rows):
            now = self.measures.world(1, n).value(angle)
            shared = np.take(now, range(steady), axis=axis)
            if steady and not np.allclose(shared, before, atol=1e-5):
                break
            steady, before = n, now
        told = "angles depend on other positions than their own"
        if 1 < steady < self.rows:
            told += f" in texts of more than {steady} positions; to serve shorter ones, give "
            told += f'--passes "canonicalize{{cap={steady}}}"'
        return Mismatch.at(angle, told)
