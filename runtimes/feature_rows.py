"""The target's features of a text, kept until a draft head reads them."""

from __future__ import annotations

import numpy as np

from graftline.runtimes.session import Floats


class FeatureRows:
    """Features [N, H] of slots in order: added behind the last, forgotten from the first on.

    Adding costs what is added, however many are kept: they lie in one array that grows. What was
    handed out is never written over.
    """

    def __init__(self, width: int) -> None:
        self._rows = np.empty((0, width), np.float32)
        self._begin = self._end = 0
        self.first = 0
        """The slot of the first one kept."""

    def __len__(self) -> int:
        return self._end - self._begin

    @property
    def stop(self) -> int:
        """The slot behind the last one."""
        return self.first + len(self)

    def restart(self) -> None:
        """Keep none, and begin at slot 0."""
        self._rows = self._rows[:0]
        self._begin = self._end = self.first = 0

    def forget(self, before: int) -> None:
        """Slots before that were read."""
        gone = min(max(before - self.first, 0), len(self))
        self._begin, self.first = self._begin + gone, self.first + gone

    def cut(self, stop: int) -> None:
        """None is known from slot `stop` on. Only before any was handed out."""
        self._end -= max(self.stop - stop, 0)

    def add(self, features: Floats) -> None:
        """The features [N, H] of the slots behind the last one."""
        if self._end + len(features) > len(self._rows):
            kept = self.of(self.first)
            self._rows = np.empty((2 * (len(kept) + len(features)), kept.shape[1]), np.float32)
            self._rows[: len(kept)] = kept
            self._begin, self._end = 0, len(kept)
        begin, self._end = self._end, self._end + len(features)
        self._rows[begin : self._end] = features

    def of(self, start: int, stop: int | None = None) -> Floats:
        """[N, H]: the features of the slots from `start` on, those before `stop` or all."""
        place = self._begin - self.first
        end = self._end if stop is None else min(self._end, place + stop)
        return self._rows[place + start : end]
