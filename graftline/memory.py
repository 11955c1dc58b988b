"""How much memory this machine has left, and giving back what nobody uses any more."""

from __future__ import annotations

import ctypes
import os


def free_memory() -> int:
    """Bytes that a process can still take; on systems that do not say, half of what there is."""
    try:
        with open("/proc/meminfo", encoding="ascii") as lines:
            return next(int(line.split()[1]) << 10 for line in lines if "MemAvailable" in line)
    except (OSError, StopIteration):
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2


def give_back_memory() -> None:
    """Return freed memory to the system, which glibc's malloc keeps otherwise: after a session or a
    model is closed, as much as its weights. Elsewhere nothing happens."""
    try:
        trim = ctypes.CDLL(None).malloc_trim
    except (OSError, AttributeError, TypeError):
        return
    trim(0)
