"""How much memory this machine has left."""

from __future__ import annotations

import os


def free_memory() -> int:
    """Bytes that a process can still take; on systems that do not say, half of what there is."""
    try:
        with open("/proc/meminfo", encoding="ascii") as lines:
            return next(int(line.split()[1]) << 10 for line in lines if "MemAvailable" in line)
    except (OSError, StopIteration):
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
