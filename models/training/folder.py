"""The folder that a training writes: whole or not at all, and never over something else."""

from __future__ import annotations

import os
import platform
import shutil
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path

from graftline.errors import GraftlineError
from graftline.files import fsync
from graftline.interrupts import uninterrupted
from graftline.models.training.tensor_file import room

CARD = "README.md"


def mark(run: str) -> str:
    """What the card of something that we trained ends with: the run that it came of."""
    return f"<!-- graftline train {run} -->"


def check_out(out: Path, run: str, what: str) -> None:
    """Raise GraftlineError where `out` holds something else than what this very run wrote."""
    if out.is_symlink() or (out.exists() and not out.is_dir()):
        raise GraftlineError(f"{out} is not a folder; choose another -o")
    if not out.is_dir() or not any(out.iterdir()):
        return
    card = out / CARD
    text = card.read_text("utf-8", "replace") if card.is_file() else ""
    if mark(run) not in text:
        raise GraftlineError(
            f"{out} holds something else than {what} of this command; choose another -o or empty it"
        )


def put(out: Path, files: Mapping[str, bytes]) -> None:
    """Write files in place of what an earlier run wrote. Raises GraftlineError on a full disk."""
    out.parent.mkdir(parents=True, exist_ok=True)
    rough, aside = (out.with_name(f".{out.name}.{kind}-{os.getpid()}") for kind in ("tmp", "old"))
    with room(out), uninterrupted():
        try:
            rough.mkdir()
            for name, data in files.items():
                (rough / name).write_bytes(data)
                fsync(rough / name)
            if out.exists():
                os.rename(out, aside)
            os.rename(rough, out)
            fsync(out.parent)
        finally:
            if aside.exists() and not out.exists():
                os.rename(aside, out)
            shutil.rmtree(rough, ignore_errors=True)
            shutil.rmtree(aside, ignore_errors=True)


def machine() -> str:
    """The machine that something was trained on."""
    return f"{platform.system()} {platform.machine()}, {os.cpu_count()} processors"


def versions() -> str:
    """Of the libraries that took part."""
    names = ("graftline", "torch", "transformers", "onnxruntime")
    found = (f"{name} {metadata.version(name)}" for name in names)
    return ", ".join([f"Python {platform.python_version()}", *found])
