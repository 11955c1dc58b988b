"""Files of tensors that are whole or not there: written beside their place, hashed, renamed."""

from __future__ import annotations

import errno
import hashlib
import json
import shutil
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from graftline.errors import CheckpointError, GraftlineError
from graftline.files import fsync, replacing

Array = npt.NDArray[Any]
SUM = "sha256"
"""Where a file's metadata says the digest of its tensors."""
DTYPES: Mapping[str, Any] = {
    "F32": np.float32, "F16": np.float16, "I64": np.int64, "I32": np.int32, "U8": np.uint8,
}  # fmt: skip
"""What such a file may hold, by the format's names."""
FULL = (errno.ENOSPC, errno.EDQUOT)


def write_tensors(path: Path, tensors: Mapping[str, Array], notes: Mapping[str, str]) -> None:
    """Write a safetensors file with `notes` beside its tensors. Raises GraftlineError on a full
    disk; then what was there is there still."""
    from safetensors.numpy import save

    held = {name: np.asarray(value, order="C") for name, value in tensors.items()}
    write_bytes(path, save(held, {**notes, SUM: _digest(held)}))


def read_tensors(path: Path) -> tuple[dict[str, Array], dict[str, str]]:
    """The tensors of such a file, which stay in it until they are used, and its notes. Raises
    CheckpointError where it is damaged."""
    try:
        data = np.memmap(path, np.uint8, "r")
        size = int.from_bytes(data[:8].tobytes(), "little")
        header: dict[str, Any] = json.loads(data[8 : 8 + size].tobytes())
        notes: dict[str, str] = header.pop("__metadata__")
        tensors = {name: _mapped(data[8 + size :], row) for name, row in header.items()}
    except (ValueError, KeyError, TypeError, OSError) as error:
        raise damaged(path, error) from error
    if notes.pop(SUM, "") != _digest(tensors):
        raise damaged(path, "its numbers are not those that were written")
    return tensors, notes


def _mapped(data: Array, row: Mapping[str, Any]) -> Array:
    start, end = row["data_offsets"]
    return data[start:end].view(DTYPES[row["dtype"]]).reshape(row["shape"])


def damaged(path: Path, why: object) -> CheckpointError:
    """The error for a file of the cache that cannot be used."""
    reason = (str(why).strip().splitlines() or [type(why).__name__])[0]
    return CheckpointError(
        f"{path}: damaged ({reason}); delete this file and run the same command again"
    )


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file whole or not at all. Raises GraftlineError on a full disk."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with room(path):
        with replacing(path) as rough:
            rough.write_bytes(data)
            fsync(rough)
        fsync(path.parent)


@contextmanager
def room(path: Path) -> Generator[None]:
    """A disk that is full within this block is one line. Raises GraftlineError."""
    try:
        yield
    except OSError as error:
        if error.errno not in FULL:
            raise
        raise GraftlineError(
            f"{path}: the disk is full; what was finished before is kept: free some space (or set "
            "XDG_CACHE_HOME to another disk) and run the same command again"
        ) from error


def check_room(folder: Path, need: int, what: str) -> None:
    """Raise GraftlineError unless the disk of a folder has `need` bytes for `what`."""
    folder.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(folder).free
    if free < need:
        raise GraftlineError(
            f"{what} need {need / 1e6:.1f} MB in {folder}, whose disk has {free / 1e6:.1f} MB; "
            "free some space, set XDG_CACHE_HOME to another disk, or give fewer prompts"
        )


def _digest(tensors: Mapping[str, Array]) -> str:
    found = hashlib.sha256()
    for name in sorted(tensors):
        value = tensors[name]
        found.update(f"{name} {value.dtype} {value.shape}\n".encode())
        found.update(np.ascontiguousarray(value).reshape(-1).view(np.uint8).data)
    return found.hexdigest()
