"""What a law found: held, measured or not run; how far apart, and how far is allowed."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from graftline.owners import TARGET

Status = Literal["held", "measured", "not_run"]
"""`held`: checked against a limit. `measured`: nothing bounds the value. `not_run`: could not run,
and says why. A law that is broken is an error (LawBroken), not a status."""


@dataclass(frozen=True)
class Evidence:
    """What one law compared, in words, and by how much it differed.

    `value` is the largest difference seen and `limit` what is allowed, in the same unit; both None
    where things are counted or compared exactly.
    """

    what: str
    value: float | None = None
    limit: float | None = None
    status: Status = "held"


@dataclass(frozen=True)
class LawRow:
    """One law of one pass, stage or target; `owner` is whose stage it was checked on."""

    graft: str
    law: str
    status: Status
    what: str
    value: float | None = None
    limit: float | None = None
    owner: str = TARGET

    @classmethod
    def of(cls, graft: str, law: str, found: Evidence) -> LawRow:
        """The row of what a law found for a graft."""
        return cls(graft, law, found.status, found.what, found.value, found.limit)

    @property
    def text(self) -> str:
        """`what`, with the numbers behind it."""
        if self.status == "not_run":
            return f"not run: {self.what}"
        if self.value is None:
            return self.what
        bound = "nothing bounds it" if self.limit is None else f"limit {self.limit:.2g}"
        return f"{self.what} (largest difference {self.value:.2g}, {bound})"


def summary(laws: Iterable[LawRow]) -> str:
    """How many laws have each status: "33 held, 2 measured, 1 not run: <why>"."""
    rows = list(laws)
    counts = [f"{sum(r.status == 'held' for r in rows)} held"]
    if measured := sum(r.status == "measured" for r in rows):
        counts.append(f"{measured} measured")
    if missing := [r for r in rows if r.status == "not_run"]:
        reasons = "; ".join(dict.fromkeys(r.what for r in missing))
        counts.append(f"{len(missing)} not run: {reasons}")
    return ", ".join(counts)
