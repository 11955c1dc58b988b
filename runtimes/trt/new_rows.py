"""New rows of one sequence, and how they go into a step of fixed rows over fixed slots."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from graftline.errors import BackendError
from graftline.runtimes.session import Bools, Ints
from graftline.runtimes.trt.step import ProfileStep


@dataclass(frozen=True)
class NewRows:
    """New rows of one sequence: `tokens` [N] and `positions` [N], for the slots from `slot` on.

    Every row sees all slots before `start`; `seen` [N, M] says it of the M from there.
    """

    tokens: Ints
    positions: Ints
    slot: int
    start: int
    seen: Bools

    def write(self, step: ProfileStep, place: int, first: int, last: int, slots: int) -> None:
        """Put rows first .. last - 1 into a step as its sequence `place`, and padding behind them.

        Padding is of any token, and its slots are never committed. Such a row sees the committed
        slots and itself, as a second root would: one that saw nothing would leave NaN in the
        caches.
        """
        arrays, count, slot = step.arrays, last - first, self.slot + first
        wide = arrays["tokens"].shape[1]
        if slot + wide > slots:
            raise BackendError(
                f"{wide} rows behind {slot} positions do not fit {slots} slots"
            )
        arrays["tokens"][place, :count] = self.tokens[first:last]
        arrays["write_index"][place] = slot
        if "parents" in arrays:  # a fused graph: it knows positions and mask by the parents
            arrays["parents"][place] = -1
            arrays["parents"][place, 1:count] = np.arange(count - 1)
            return
        arrays["positions"][place, :count] = self.positions[first:last]
        arrays["positions"][place, count:] = self.positions[0]
        if step.mask is None:
            return
        known = min(self.seen.shape[1], slot + count - self.start)
        if self.seen[first:last, known:].any():
            raise BackendError(
                f"a row sees one behind it that is not in the same step, which has {wide} rows; "
                "rebuild with more --engine rows="
            )
        seen = np.zeros((wide, slot + wide - self.start), np.bool_)
        seen[:count, :known] = self.seen[first:last, :known]
        padding = np.arange(count, wide)
        seen[padding, slot - self.start + padding] = True
        step.mask.after(place, self.start, seen)
