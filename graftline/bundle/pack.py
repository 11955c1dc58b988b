"""`pack`: what an app ships of a bundle. Engines, tokenizer, manifest and a report; no export, no
canonical graph, and of the checkpoint's weights only what the engines themselves read."""

from __future__ import annotations

import io
import os
import shutil
import tarfile
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

import onnx_ir as ir

from graftline.bundle.manifest import MANIFEST, SEAL, Manifest
from graftline.bundle.reader import Bundle
from graftline.bundle.report import report
from graftline.bundle.store import load_graph, save_graph
from graftline.bundle.writer import BundleWriter
from graftline.errors import BundleError
from graftline.files import file_state, files_in, fsync

REPORT = "report.txt"
LEFT_OUT = ("export", "canonical")
"""Roles of stages that no runtime opens."""
Watch = Callable[[str], None]


@dataclass(frozen=True)
class Packed:
    """A packed bundle or its archive, its bytes, and those of the bundle that it was packed from.
    """

    path: Path
    size: int
    before: int


def pack(path: str | Path, out: str | Path, watch: Watch | None = None) -> Packed:
    """Pack the bundle at `path` into the folder or, where its name ends in `.tar`, the archive
    `out`, all or nothing.

    Raises BundleError for a bundle that differs from its manifest, and where `out` holds something
    else than a packed bundle.
    """
    say = watch or _silent
    target = Path(os.path.abspath(out))
    _check_out(Path(path), target)
    say(f"checking {path}")
    bundle = Bundle.open(path)
    writer = ArchiveWriter(target, say) if target.suffix == ".tar" else BundleWriter(target, say)
    with writer:
        writer.finish(_write(bundle, writer, say))
    return Packed(target, _size(target), _size(bundle.path))


def _check_out(path: Path, out: Path) -> None:
    if "".join(out.suffixes[-2:]) in (".tar.gz", ".tar.xz", ".tar.zst") or out.suffix == ".tgz":
        raise BundleError(f"{out}: weights do not compress; choose a name that ends in .tar")
    if out.resolve().is_relative_to(path.resolve()):
        raise BundleError(f"{out} is the bundle itself or lies in it; choose another -o")


def _write(bundle: Bundle, writer: BundleWriter, say: Watch) -> Manifest:
    """Write the files of a packed bundle; its manifest."""
    manifest = bundle.manifest
    kept = {name: s for name, s in manifest.stages.items() if s.role not in LEFT_OUT}
    for name, stage in kept.items():
        say(f"writing {stage.file}")
        model = load_graph(bundle.graph(name))
        if not _reads_graph(manifest):
            _drop_weights(model)
        save_graph(model, writer.path(stage.file), writer.engine, {})
    for rel in [*manifest.tokenizer, *(row["file"] for _, row in manifest.built())]:
        source = bundle.file(rel)
        writer.need(source.stat().st_size)
        shutil.copyfile(source, writer.path(rel))
    packed = replace(
        manifest, stages=kept, files={},
        packed=manifest.packed or bundle.digest,
    )  # fmt: skip
    writer.write_text(REPORT, report(packed))
    return packed


def _reads_graph(manifest: Manifest) -> bool:
    """Whether weights are read from the graphs: not where a TensorRT engine holds them itself."""
    engine = manifest.extra.get("engine")
    return engine is None or bool(engine["options"].get("strip_weights"))


def _drop_weights(model: ir.Model) -> None:
    """Make weights inputs of the graph, which then only says what it computes."""
    for name, value in list(model.graph.initializers.items()):
        if isinstance(value.const_value, ir.ExternalTensor):
            del model.graph.initializers[name]
            value.const_value = None
            model.graph.inputs.append(value)


def _size(path: Path) -> int:
    """Bytes of a file, or of a folder's files, each once however many links it has."""
    states = {file_state(p) for p in (files_in(path) if path.is_dir() else [path])}
    return sum({s.inode: s.size for s in states if s is not None}.values())


class ArchiveWriter(BundleWriter):
    """A bundle written as one .tar file, which holds a folder of the archive's name."""

    def check_target(self) -> None:
        """Raise BundleError when the archive's name is taken by anything but a packed bundle."""
        if self.out.is_dir() or self.out.is_symlink():
            raise BundleError(f"{self.out} is not a file; choose another -o")
        if self.out.exists() and not _is_packed(self.out):
            raise BundleError(f"{self.out} is a file that pack did not make; choose another -o")

    def put_in_place(self, held: list[int]) -> None:
        """Write the archive beside the files it is made of, and move it to `out`."""
        archive = self.root / ".tar"
        files = files_in(self.root)
        self.need(sum(p.stat().st_size for p in files))
        first = [self.root / MANIFEST, self.root / SEAL]
        when = datetime.fromisoformat(self.created).timestamp()
        with tarfile.open(archive, "w", format=tarfile.PAX_FORMAT) as tar:
            for path in [*first, *(p for p in files if p not in first)]:
                name = f"{self.out.stem}/{path.relative_to(self.root).as_posix()}"
                with _member(tar, path, name, int(when)) as info, _Interruptible(path, held) as raw:
                    tar.addfile(info, raw if info.isreg() else None)
        fsync(archive)
        self.check_target()
        os.replace(archive, self.out)
        fsync(self.out.parent)


@contextmanager
def _member(tar: tarfile.TarFile, path: Path, name: str, when: int) -> Generator[tarfile.TarInfo]:
    """A member that says nothing of whoever made the archive."""
    info = tar.gettarinfo(path, name)
    info.uid = info.gid = 0
    info.uname = info.gname = ""
    info.mode, info.mtime = 0o644, when
    yield info


class _Interruptible(io.FileIO):
    """A file whose reading ends with KeyboardInterrupt once an interrupt is held back."""

    def __init__(self, path: Path, held: list[int]) -> None:
        super().__init__(path, "rb")
        self._held = held

    def read(self, size: int | None = -1, /) -> Any:
        if self._held:
            raise KeyboardInterrupt
        return super().read(-1 if size is None else size)


def _is_packed(path: Path) -> bool:
    """Whether a file is an archive of a bundle: its manifest is the first member."""
    try:
        with tarfile.open(path, "r:") as tar:
            first = tar.next()
    except (tarfile.TarError, OSError):
        return False
    return first is not None and Path(first.name).name == MANIFEST


def _silent(line: str) -> None:
    """Watch nothing."""
