"""Converted checkpoints, kept once per content under the user's cache folder."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path

from graftline.optional import require

SAMPLE = 1 << 20


def fingerprint(files: Iterable[Path]) -> str:
    """Name the content of files by their first and last MB, size and time of change.

    The time is part of it because two fine-tunes of one model can share both ends.
    """
    digest = hashlib.sha256()
    for file in files:
        state = file.stat()
        digest.update(f"{file.name} {state.st_size} {state.st_mtime_ns}\n".encode())
        with file.open("rb") as stream:
            digest.update(stream.read(SAMPLE))
            stream.seek(max(0, state.st_size - SAMPLE))
            digest.update(stream.read(SAMPLE))
    return digest.hexdigest()[:32]


def place(kind: str) -> Path:
    """Where things of a kind are kept: <cache>/graftline/<kind>."""
    return Path(require("platformdirs").user_cache_dir("graftline")) / kind


def cached(kind: str, key: str, build: Callable[[Path], None]) -> Path:
    """The folder <cache>/graftline/<kind>/<key>, made by `build` if it is not there yet.

    Built under a temporary name and renamed, so a folder that exists is whole.
    """
    parent = place(kind)
    final = parent / key
    if final.is_dir():
        return final
    parent.mkdir(parents=True, exist_ok=True)
    rough = Path(tempfile.mkdtemp(prefix=f".{key[:8]}-", dir=parent))
    try:
        build(rough)
        rough.chmod(0o755)
        os.rename(rough, final)
    except OSError:
        if not final.is_dir():
            raise
    finally:
        shutil.rmtree(rough, ignore_errors=True)
    return final
