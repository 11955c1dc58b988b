"""What tests ask of an engine that no user asks."""

from __future__ import annotations

from graftline.runtimes.engine import Engine


def left_over(engine: Engine) -> int:
    """Sequences that still have a seat once nobody asks for anything."""
    while engine._scheduler.step():
        pass
    return len(engine._scheduler._seated)
