"""Files of a bundle's folder: their digests, and the rule that no path leaves it."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from graftline.errors import BundleError

CHUNK = 8 << 20
SOURCE = "source"
"""The folder of what `check` compares a bundle with, and no runtime reads."""


def told_size(count: float) -> str:
    """A number of bytes for people."""
    for unit in ("B", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.2f} GiB"


@dataclass(frozen=True)
class FileState:
    """What tells that a file was replaced or written to: which file of which disk, its size in
    bytes, and when it was last changed, in nanoseconds."""

    device: int
    inode: int
    size: int
    changed: int


def file_state(path: Path) -> FileState | None:
    """The state of a file now; None where there is none."""
    try:
        found = path.stat()
    except OSError:
        return None
    return FileState(found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns)


def check_unchanged(states: Mapping[Path, FileState]) -> None:
    """Raise BundleError for a file that is no longer what it was."""
    for path, state in states.items():
        if file_state(path) != state:
            raise BundleError(
                f"{path} was replaced or changed while it was read; nothing was written, run the "
                "command again"
            )


@contextmanager
def reading(states: Mapping[Path, FileState]) -> Generator[None]:
    """Whatever fails in this block because a file changed meanwhile says that it did."""
    try:
        yield
    except Exception:
        check_unchanged(states)
        raise


def of_source(rel: str) -> bool:
    """Whether a file of a bundle is only there to compare the bundle with."""
    return SOURCE in PurePosixPath(rel).parts[:-1]


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


@contextmanager
def replacing(path: Path) -> Generator[Path]:
    """Where to write what `path` is to be: it takes its place when the block ends, and goes where
    the block fails or is interrupted, so that `path` is whole or as it was. What is no file, as
    /dev/stdout, is written to itself. An OSError of the block names `path`."""
    path = path.resolve()
    if path.exists() and not path.is_file():
        yield path
        return
    rough = path.with_name(f".{path.stem}.tmp-{os.getpid()}{path.suffix}")
    try:
        yield rough
        os.replace(rough, path)
    except OSError as error:
        if error.filename == str(rough):
            error.filename = str(path)
        raise
    finally:
        rough.unlink(missing_ok=True)


def fsync(path: Path) -> None:
    """Bring a file or folder to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
