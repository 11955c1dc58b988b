"""Writing a bundle: all or nothing, never over something that is not a bundle."""

from __future__ import annotations

import errno
import glob
import hashlib
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Literal

from graftline.errors import BundleError
from graftline.folder import digest, files_in, fsync, inside
from graftline.manifest import MANIFEST, SEAL, FileEntry, Manifest

SPARE = 64 << 20
"""Bytes kept free on the disk besides what a write needs."""
Watch = Callable[[str], None]


class BundleWriter:
    """Context manager that makes a bundle at `out`, all or nothing.

    Files go to a sibling `OUT.tmp-PID`. Leaving the block after `finish` moves it to `out`,
    replacing an older bundle; leaving it in any other way removes it and leaves `out` as it was.
    What a killed writer left beside `out` is cleared first.
    """

    def __init__(self, out: str | Path, watch: Watch | None = None) -> None:
        self.out = Path(os.path.abspath(out))
        self.root = self.out.with_name(f"{self.out.name}.tmp-{os.getpid()}")
        self._watch = watch or _silent
        self._finished = False
        self._brought: dict[Path, Path] = {}
        self._around: dict[Path, Path] = {}

    def nested(self, rel: str) -> BundleWriter:
        """A writer of a bundle inside this one, published with it: finish it first, and that is
        all. A file both bring in is stored once where the disk allows links."""
        inner = BundleWriter(self.out, self._watch)
        inner.root = inside(self.root, rel)
        inner.root.mkdir(parents=True)
        inner._around = self._brought
        return inner

    def __enter__(self) -> BundleWriter:
        _sweep(self.out)
        check_target(self.out)
        try:
            self.out.parent.mkdir(parents=True, exist_ok=True)
            self.root.mkdir()
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
        free = shutil.disk_usage(self.root).free
        if free < size + SPARE:
            raise BundleError(
                f"cannot write {self.out}: {_mib(size)} needed, {_mib(free)} free on its disk; "
                "free some space or choose another -o"
            )

    def write_text(self, rel: str, text: str) -> Path:
        """Write a small text file (UTF-8)."""
        path = self.path(rel)
        path.write_text(text, encoding="utf-8")
        return path

    def link_or_copy(self, source: Path, rel: str, mode: Literal["link", "copy"] = "link") -> Path:
        """Bring an existing file in: a hard link where the disk allows it, else a told copy; what
        the bundle around this one has brought in is linked to that in either mode."""
        target = self.path(rel)
        self._brought[source.resolve()] = target
        there = self._around.get(source.resolve())
        if mode == "link" or there is not None:
            try:
                os.link(there or source.resolve(), target)
                return target
            except OSError as error:
                if error.errno not in (errno.EXDEV, errno.EPERM, errno.EMLINK, errno.ENOTSUP):
                    raise BundleError(f"cannot link {source}: {error.strerror}") from error
                self._watch(f"{source.name}: cannot be linked ({error.strerror}), copying it")
        try:
            self.need(source.stat().st_size)
            shutil.copyfile(source, target)
        except OSError as error:
            raise BundleError(f"cannot copy {source}: {error.strerror or error}") from error
        return target

    def finish(self, manifest: Manifest) -> Manifest:
        """Hash every file and write the manifest; the last call of the block."""
        files = {
            p.relative_to(self.root).as_posix(): FileEntry(digest(p), p.stat().st_size)
            for p in files_in(self.root)
        }
        if lost := [rel for rel in manifest.graphs.values() if rel not in files]:
            raise BundleError(f"{self.out}: graph {lost[0]} was never written")
        made = datetime.now(UTC).isoformat(timespec="seconds")
        manifest = replace(manifest, files=files, created=manifest.created or made)
        text = manifest.to_json()
        self.write_text(MANIFEST, text)
        self.write_text(SEAL, f"{hashlib.sha256(text.encode()).hexdigest()}  {MANIFEST}\n")
        self._finished = True
        return manifest

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            if kind is None and not self._finished:
                raise BundleError(f"{self.out}: the bundle was not finished; nothing was written")
            if kind is None:
                self._publish()
        except OSError as failure:
            raise BundleError(f"cannot write {self.out}: {failure.strerror}") from failure
        finally:
            shutil.rmtree(self.root, ignore_errors=True)
        if isinstance(error, OSError) and error.errno == errno.ENOSPC:
            raise BundleError(
                f"cannot write {self.out}: the disk is full; free some space or choose another -o"
            ) from error

    def _publish(self) -> None:
        for path in files_in(self.root):
            fsync(path)
        for folder in {p.parent for p in files_in(self.root)} | {self.root}:
            fsync(folder)
        check_target(self.out)
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


def _silent(line: str) -> None:
    """Watch nothing."""


def _mib(size: int) -> str:
    return f"{size / (1 << 20):,.0f} MiB"
