"""Stands in place of `fuzz.one` in processes of their own, one of which dies."""

from __future__ import annotations

import os
import signal

from tests.generated.fuzz import Row

DIES = 3


def dies_at_three(seed: int) -> Row:
    """A row at once; at seed 3 the process is killed, as for want of memory."""
    if seed == DIES:
        os.kill(os.getpid(), signal.SIGKILL)
    return Row(seed, "equal", "", ["sees=full"])
