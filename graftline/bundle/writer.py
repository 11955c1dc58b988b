"""Writing a bundle: all or nothing, never over something that is not a bundle."""

from __future__ import annotations

import errno
import glob
import hashlib
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from types import TracebackType
from weakref import finalize

from graftline.bundle.manifest import MANIFEST, SEAL, FileEntry, Manifest
from graftline.bundle.weight_file import WeightFile
from graftline.errors import BundleError
from graftline.files import (
    SOURCE,
    FileState,
    check_unchanged,
    digest,
    file_state,
    files_in,
    fsync,
    inside,
    told_size,
)
from graftline.interrupts import uninterrupted

SPARE = 64 << 20
"""Bytes kept free on the disk besides what a write needs."""
ENGINE_WEIGHTS, SOURCE_WEIGHTS = "engine.weights", f"{SOURCE}/source.weights"
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""What a disk, a quota and a file system say that take no more."""
Watch = Callable[[str], None]


class BundleWriter:
    """Context manager that makes a bundle at `out`, all or nothing.

    Files go to a sibling `OUT.tmp-PID`. Leaving the block after `finish` moves it to `out`,
    replacing an older bundle; leaving it in any other way removes it and leaves `out` as it was.
    What a killed writer left beside `out` is cleared first.
    """

    def __init__(self, out: str | Path, watch: Watch | None = None) -> None:
        self.out = Path(os.path.abspath(out))
        self._watch = watch or _silent
        self._finished = self._published = False
        self.created = ""
        self._states: dict[Path, FileState] = {}
        self._digests: dict[FileState, str] = {}
        self.root = self.out.with_name(f"{self.out.name}.tmp-{os.getpid()}")
        need = partial(need_space, self.root, self.out)
        self.engine = WeightFile(self.root, ENGINE_WEIGHTS, need)
        self.source = WeightFile(self.root, SOURCE_WEIGHTS, need, (self.engine,), True)

    def expect(self, states: Mapping[Path, FileState]) -> None:
        """Refuse to link or to finish when one of these files is no longer what it was."""
        self._states.update(states)
        check_unchanged(self._states)

    def __enter__(self) -> BundleWriter:
        try:
            with uninterrupted():
                _sweep(self.out)
                self.check_target()
                self.out.parent.mkdir(parents=True, exist_ok=True)
                self.root.mkdir()
                # an interrupt before __exit__ has begun goes past it, but not past this
                self._clear = finalize(self, shutil.rmtree, self.root, True)
        except FileExistsError as error:
            raise BundleError(f"{self.root} is in the way; remove it and try again") from error
        except OSError as error:
            raise BundleError(f"cannot write {self.out}: {error.strerror or error}") from error
        return self

    def path(self, rel: str) -> Path:
        """Where to write the file `rel`; its folder is made. Raises BundleError outside OUT."""
        path = inside(self.root, rel)
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def need(self, size: int) -> None:
        """Raise BundleError when the disk cannot take `size` more bytes."""
        need_space(self.root, self.out, size)

    def write_text(self, rel: str, text: str) -> Path:
        """Write a small text file (UTF-8)."""
        path = self.path(rel)
        path.write_text(text, encoding="utf-8")
        return path

    def link(self, source: Path, rel: str) -> bool:
        """Bring an existing file in as a hard link; False, and told, where the disk allows none.
        """
        target = self.path(rel)
        try:
            os.link(source.resolve(), target)
        except OSError as error:
            if error.errno not in (errno.EXDEV, errno.EPERM, errno.EMLINK, errno.ENOTSUP):
                raise BundleError(f"cannot link {source}: {error.strerror}") from error
            self._watch(
                f"{source.name}: cannot be linked ({error.strerror}), copying what is needed of it"
            )
            return False
        check_unchanged(self._states)
        return True

    def finish(self, manifest: Manifest) -> Manifest:
        """Hash every file and write the manifest; the last call of the block."""
        check_unchanged(self._states)
        files = {
            p.relative_to(self.root).as_posix(): FileEntry(self._digest(p), p.stat().st_size)
            for p in files_in(self.root)
        }
        check_unchanged(self._states)
        if lost := [s.file for s in manifest.stages.values() if s.file not in files]:
            raise BundleError(f"{self.out}: graph {lost[0]} was never written")
        made = datetime.now(UTC).isoformat(timespec="seconds")
        manifest = replace(manifest, files=files, created=manifest.created or made)
        self.created = manifest.created
        text = manifest.to_json()
        Manifest.from_json(text)  # what cannot be read is not published
        self.write_text(MANIFEST, text)
        self.write_text(SEAL, f"{hashlib.sha256(text.encode()).hexdigest()}  {MANIFEST}\n")
        self._finished = True
        return manifest

    def _digest(self, path: Path) -> str:
        """sha256 of a file, read once however many links it has."""
        state = file_state(path)
        assert state is not None
        if state not in self._digests:
            self._digests[state] = digest(path)
        return self._digests[state]

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            with uninterrupted() as held:
                self._close(kind is None, held)
        except KeyboardInterrupt:
            told = (f"{self.out} was written",) if self._published else ()
            raise KeyboardInterrupt(*told) from None
        if isinstance(error, OSError) and error.errno in FULL:
            raise BundleError(
                f"cannot write {self.out}: the disk is full; free some space or choose another -o"
            ) from error

    def _close(self, good: bool, held: list[int]) -> None:
        """Publish what was finished, clear away what was not."""
        try:
            if good and not self._finished:
                raise BundleError(f"{self.out}: the bundle was not finished; nothing was written")
            if good:
                self._publish(held)
        except OSError as failure:
            raise BundleError(f"cannot write {self.out}: {failure.strerror}") from failure
        finally:
            self._clear()

    def _publish(self, held: list[int]) -> None:
        """Bring all to the disk and put it in place. Raises KeyboardInterrupt when one came before
        the older bundle was touched."""
        files = files_in(self.root)
        for path in [*files, *{p.parent for p in files} | {self.root}]:
            fsync(path)
            if held:
                raise KeyboardInterrupt
        self.put_in_place(held)
        self._published = True

    def check_target(self) -> None:
        """Raise BundleError where `out` must not be written over."""
        check_target(self.out)

    def put_in_place(self, held: list[int]) -> None:
        """Move the finished folder to `out`, in place of the bundle there."""
        self.check_target()
        aside = self.out.with_name(f"{self.out.name}.old-{os.getpid()}")
        try:
            if self.out.exists():
                os.rename(self.out, aside)
            os.rename(self.root, self.out)
        except BaseException:
            if aside.exists() and not self.out.exists():
                os.rename(aside, self.out)
            raise
        finally:
            if self.out.exists():
                shutil.rmtree(aside, ignore_errors=True)
        fsync(self.out.parent)


def check_target(out: Path) -> None:
    """Raise BundleError when `out` holds something else than a bundle: it is not overwritten."""
    if out.is_symlink() or (out.exists() and not out.is_dir()):
        raise BundleError(f"{out} is not a folder; choose another -o")
    if out.is_dir() and not (out / MANIFEST).is_file() and any(out.iterdir()):
        raise BundleError(f"{out} is a folder that is not a bundle; choose another -o or empty it")


def _sweep(out: Path) -> None:
    """Clear what killed writers left beside `out`; a bundle they had moved aside comes back."""
    for left in sorted(out.parent.glob(f"{glob.escape(out.name)}.*-*")):
        kind, _, pid = left.name[len(out.name) + 1 :].partition("-")
        if kind not in ("tmp", "old") or not pid.isdigit() or _alive(int(pid)):
            continue
        if kind == "old" and not out.exists():
            os.rename(left, out)
        else:
            shutil.rmtree(left, ignore_errors=True)


def _alive(pid: int) -> bool:
    if pid == os.getpid():
        return True
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def need_space(root: Path, out: Path, size: int) -> None:
    """Raise BundleError where the disk of the folder `root` cannot take `size` more bytes of `out`.
    """
    free = shutil.disk_usage(root).free
    if free < size + SPARE:
        raise BundleError(
            f"cannot write {out}: {told_size(size)} needed, {told_size(free)} free on its disk; "
            "free some space or choose another -o"
        )


def _silent(line: str) -> None:
    """Watch nothing."""
