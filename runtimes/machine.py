"""What tells one machine's speed from another's."""

from __future__ import annotations

import platform
from pathlib import Path


def machine() -> str:
    """Its system and processor."""
    known = Path("/proc/cpuinfo")
    lines = known.read_text("utf-8", "replace").splitlines() if known.is_file() else []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return f"{platform.system()} {next(names, platform.processor() or platform.machine())}"


def costs_key(threads: int, version: str) -> str:
    """Key under which a bundle keeps its costs."""
    return f"{machine()} threads={threads} onnxruntime={version}"
