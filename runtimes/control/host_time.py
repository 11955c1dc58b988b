"""What a step takes outside the engines: a slow rule or drafter is a reason not to draft."""

from __future__ import annotations

import time
from collections import deque

SLIGHT = 0.02
"""Share of a plain step that the host may work longer without being charged."""
WINDOW = 16
"""Steps of either kind that are remembered."""
PATIENCE = 32
"""Steps without a draft after which the dearest of the drafted ones is forgotten."""

working = (
    time.thread_time if time.get_clock_info("thread_time").resolution < 1e-4 else time.perf_counter
)
"""Seconds that this thread has worked: others that want the processor do not make a rule slow.
Where the system counts in coarse ticks, the time that has passed."""


class HostTime:
    """How many milliseconds longer the host works in a step that drafts than in one that does not.

    Of the last steps of either kind the mean, the longest left out: one interruption, or what is
    done only once, says nothing of the next step. While nothing is drafted, drafted steps are
    forgotten, the dearest first, so that a draft is tried again now and then.
    """

    def __init__(self) -> None:
        self._plain: deque[float] = deque(maxlen=WINDOW)
        self._drafted: deque[float] = deque(maxlen=WINDOW)
        self._idle = 0
        self._usual_plain = self._usual_drafted = 0.0

    def record(self, drafted: bool, milliseconds: float) -> None:
        """A step took the host that long, what is priced otherwise left out."""
        if drafted:
            self._drafted.append(milliseconds)
            self._idle = 0
            self._usual_drafted = _usual(self._drafted)
            return
        self._plain.append(milliseconds)
        self._usual_plain = _usual(self._plain)
        self._idle += 1
        if self._drafted and self._idle == PATIENCE:
            self._drafted.remove(max(self._drafted))
            self._idle = 0
            self._usual_drafted = _usual(self._drafted)

    def surcharge(self, step: float) -> float:
        """What to add to the cost of a drafted step when a plain one costs `step`. Little is
        nothing: decisions would hang on the clock, and what a lossy recipe answers on decisions."""
        longer = self._usual_drafted - self._usual_plain
        return longer if longer > SLIGHT * step else 0.0


def _usual(times: deque[float]) -> float:
    return (sum(times) - max(times)) / (len(times) - 1) if len(times) > 1 else 0.0
