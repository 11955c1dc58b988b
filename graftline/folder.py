"""Files of a bundle's folder: their digests, and the rule that no path leaves it."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path, PurePosixPath

from graftline.errors import BundleError

CHUNK = 8 << 20


def digest(path: Path) -> str:
    """sha256 of a file, in hexadecimal."""
    state = hashlib.sha256()
    buffer = memoryview(bytearray(min(CHUNK, max(path.stat().st_size, 1))))
    with path.open("rb", buffering=0) as file:
        while count := file.readinto(buffer):
            state.update(buffer[:count])
    return state.hexdigest()


def inside(root: Path, rel: str) -> Path:
    """The path of `rel` under `root`. Raises BundleError when it, or a link, leaves the folder."""
    pure = PurePosixPath(rel)
    if not rel or pure.is_absolute() or ".." in pure.parts or "\\" in rel or "\0" in rel:
        raise BundleError(f"{root}: path {rel!r} leaves the folder; do not trust this bundle")
    path = root / pure
    if not path.resolve().is_relative_to(root.resolve()):
        raise BundleError(f"{root}: link {rel} leaves the folder; do not trust this bundle")
    return path


def files_in(root: Path) -> list[Path]:
    """Every file and link under `root`, in order."""
    return sorted(p for p in root.rglob("*") if p.is_symlink() or not p.is_dir())


def fsync(path: Path) -> None:
    """Bring a file or folder to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
