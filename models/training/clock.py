"""The time a run may take, of which interruptions are no part."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, field
from pathlib import Path

from graftline.models.training.tensor_file import damaged, write_bytes


@dataclass
class Clock:
    """Seconds spent, kept at `path`; `limit` None: as long as it takes."""

    path: Path
    limit: float | None
    before: float = 0.0
    began: float = field(default_factory=lambda: time.monotonic())

    @classmethod
    def open(cls, path: Path, limit: float | None) -> Clock:
        """The clock of a run, which goes on where it stopped. Raises CheckpointError."""
        if not path.exists():
            return cls(path, limit)
        try:
            return cls(path, limit, float(json.loads(path.read_bytes())["seconds"]))
        except (ValueError, KeyError, TypeError) as error:
            raise damaged(path, error) from error

    def keep(self) -> None:
        """Write down what was spent. Raises GraftlineError on a full disk."""
        write_bytes(self.path, json.dumps({"seconds": self.spent}).encode())

    @property
    def spent(self) -> float:
        """Seconds, those before interruptions included."""
        return self.before + time.monotonic() - self.began

    def until(self, share: float) -> float | None:
        """Seconds until a share of the limit is over; None without a limit."""
        return None if self.limit is None else share * self.limit - self.spent

    def past(self, share: float) -> bool:
        """Whether a share of the limit is over."""
        seconds = self.until(share)
        return seconds is not None and seconds <= 0


def left(seconds: float) -> str:
    """Minutes and seconds: 4:07."""
    whole = round(max(seconds, 0.0))
    return f"{whole // 60}:{whole % 60:02d}"
