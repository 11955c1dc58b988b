"""What steps take beside what their costs say: one ratio by recipe, kind and sequences."""

from __future__ import annotations

from collections import deque
from statistics import median, median_low

LATELY = 9
"""Steps of a kind whose median counts in a choice; one step says nothing, it may be a hitch."""
SLIGHT = 0.05
"""What drafted steps may take longer without being charged: decisions would hang on the clock."""
OTHERWISE = 4.0
"""Plain steps so much faster or slower show that the costs are those of another machine, which say
nothing of how kinds of steps compare on this one."""
PATIENCE = 64
"""Plain steps, times the ratio, after which the slowest of the drafted ones is forgotten."""
COMPARED = 3
"""Plain steps after which it is known how fast the machine is now."""
WINDOW, OFF = 64, 1.25
"""Steps of a kind that must disagree with its costs, and by which factor, to change them."""

Bucket = tuple[str, str, int]
"""Recipe; "plain", "chain", "tree" or "paid"; sequences, by powers of two."""


class Pace:
    """Ratios of measured to believed times. A machine that is slow as a whole slows all kinds
    alike, and changes what is expected (`value`) but no choice; a kind that is slower than plain
    steps are is charged for it, whatever makes it so: a slow rule, a drafter, a wrong table. While
    nothing is drafted, the slowest drafted steps are forgotten, so that drafts are tried again."""

    def __init__(self) -> None:
        self.value = 1.0
        """How much longer steps take now than their costs say."""
        self._seen: dict[Bucket, deque[float]] = {}
        self._usual: dict[Bucket, float] = {}
        self._idle: dict[Bucket, int] = {}
        self._windows = {kind: deque[float](maxlen=WINDOW) for kind in _TABLES}
        self._stored = 1.0

    def record(self, recipe: str, kind: str, batch: int, ratio: float) -> None:
        """A step took `ratio` times as long as its costs say."""
        bucket = (recipe, kind, batch.bit_length())
        seen = self._seen.setdefault(bucket, deque(maxlen=LATELY))
        seen.append(ratio)
        self._usual[bucket] = median_low(seen)
        if kind == "plain":
            for drafted in ("chain", "tree", "paid"):
                if (recipe, drafted, bucket[2]) in self._usual:
                    self._forget(recipe, drafted, batch)

    def step(self, kind: str, batch: int, ratio: float, weight: float) -> None:
        """The same of a step of any recipes; one that says as much as `weight` others, 1 or more.
        """
        self.value += (1.0 - 0.9**weight) * (min(ratio, 2.0 * self.value) - self.value)
        if kind != "paid":  # the table has no part of what a draft model takes
            self._windows["batch" if batch > 1 else kind].append(ratio)

    def slower(self, recipe: str, kind: str, batch: int) -> float:
        """What the cost of a drafted step is to be multiplied by."""
        bucket = (recipe, kind, batch.bit_length())
        drafted = self._usual.get(bucket)
        if drafted is None or len(self._seen[bucket]) < 2:
            return 1.0
        plain = self._plain(recipe, bucket[2])
        if plain is None or not 1 / OTHERWISE < plain < OTHERWISE:
            return 1.0
        if drafted <= plain * (1.0 + SLIGHT):
            return 1.0
        return drafted / plain

    def settled(self, recipe: str) -> bool:
        """Whether the recipe's drafted steps have plain ones to be compared with."""
        return any(
            key[:2] == (recipe, "plain") and len(seen) >= COMPARED
            for key, seen in self._seen.items()
        )

    def tried(self, recipe: str) -> bool:
        """Whether any step of the recipe has had drafts that a model computed."""
        return any(key[:2] == (recipe, "paid") for key in self._seen)

    def disagreement(self) -> dict[str, float] | None:
        """By kind, "batch" for any of several sequences, the factor that steps say its costs are to
        be multiplied by, beginning with "plain"; None where all agree. Asked again, it says only
        what has come since."""
        known = {k: median(w) for k, w in self._windows.items() if len(w) == WINDOW}
        if all(1 / OFF <= ratio / self._stored <= OFF for ratio in known.values()):
            return None
        plain = known.get("plain", next(iter(known.values())))
        if not 1 / OTHERWISE < plain / self._stored < OTHERWISE:
            known = {}
        for window in self._windows.values():
            window.clear()
        self._stored = plain
        return {kind: known.get(kind, plain) for kind in _TABLES}

    def _plain(self, recipe: str, size: int) -> float | None:
        """The recipe's plain steps, of that many sequences or else of others; None: none yet."""
        own = self._usual.get((recipe, "plain", size))
        others = (v for k, v in self._usual.items() if k[:2] == (recipe, "plain"))
        return own if own is not None else next(others, None)

    def _forget(self, recipe: str, kind: str, batch: int) -> None:
        bucket, ratio = (recipe, kind, batch.bit_length()), self.slower(recipe, kind, batch)
        self._idle[bucket] = self._idle.get(bucket, 0) + 1 if ratio > 1.0 else 0
        if self._idle[bucket] > PATIENCE * ratio:
            seen = self._seen[bucket]
            seen.remove(max(seen))
            self._usual[bucket], self._idle[bucket] = median_low(seen), 0


_TABLES = ("plain", "chain", "tree", "batch")
