"""A bundle is written whole or not at all, whatever interrupts the writer."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import sys
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path
from types import FrameType

import pytest

from graftline.bundle.reader import Bundle, BundleWriter
from graftline.errors import BundleError
from tests.bundle.toy_bundle import manifest, write

TraceFunction = Callable[[FrameType, str, object], object]


@pytest.mark.parametrize("stop", [KeyboardInterrupt, RuntimeError, SystemExit])
def test_an_interrupt_leaves_nothing(tmp_path: Path, stop: type[BaseException]) -> None:
    def interrupted() -> None:
        with BundleWriter(tmp_path / "new.graft") as writer:
            writer.path("graphs/canonical.onnx").write_bytes(b"graph")
            writer.finish(manifest())
            raise stop

    with pytest.raises(stop):
        interrupted()
    assert os.listdir(tmp_path) == []


@pytest.mark.usefixtures("ctrl_c")
@pytest.mark.parametrize("part", range(0, 16, 2))
def test_ctrl_c_at_any_line_leaves_the_older_bundle_or_the_newer(tmp_path: Path, part: int) -> None:
    """A real signal, at every other line that writing runs: never half of anything."""
    out = tmp_path / "toy.graft"
    lines = interrupted_write(out, None)
    stopped = 0
    for at in range(part, lines, 16):
        write(out, b"older")
        interrupted_write(out, at)
        assert os.listdir(tmp_path) == ["toy.graft"], f"line {at}"
        held = Bundle.open(out).file("weights/w.bin").read_bytes()
        assert held in (b"older", b"newer"), f"line {at}"
        stopped += held == b"older"
    assert stopped > 5


def interrupted_write(out: Path, at: int | None) -> int:
    """Write a newer bundle and press Ctrl-C at the line numbered `at`; how many lines ran."""
    seen = 0
    ours = ("bundle/writer.py", "graftline/files.py", "interrupts.py")

    def line(frame: FrameType, event: str, argument: object) -> TraceFunction | None:
        nonlocal seen
        if not frame.f_code.co_filename.endswith(ours):
            return None
        if event == "line":
            if seen == at:
                signal.raise_signal(signal.SIGINT)
            seen += 1
        return line

    told = ""
    sys.settrace(line)
    try:
        write(out, b"newer")
    except KeyboardInterrupt as stop:
        told = str(stop)
    finally:
        sys.settrace(None)
    if told:
        assert told == f"{out} was written"
        assert Bundle.open(out).file("weights/w.bin").read_bytes() == b"newer"
    return seen


def test_an_interrupt_keeps_the_older_bundle(bundle: Bundle) -> None:
    def interrupted() -> None:
        with BundleWriter(bundle.path) as writer:
            writer.path("graphs/canonical.onnx").write_bytes(b"half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    Bundle.open(bundle.path)
    assert os.listdir(bundle.path.parent) == ["toy.graft"]


def test_an_interrupt_between_the_renames_brings_the_older_bundle_back(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    rename = os.rename

    def stop_before_second(source: Path, target: Path) -> None:
        if ".tmp-" in source.name:
            raise KeyboardInterrupt
        rename(source, target)

    monkeypatch.setattr(os, "rename", stop_before_second)
    with pytest.raises(KeyboardInterrupt):
        write(bundle.path, b"newer")
    assert Bundle.open(bundle.path).file("weights/w.bin").read_bytes() == b"weights"


def test_what_a_killed_writer_left_is_cleared_or_restored(bundle: Bundle) -> None:
    dead = 2**22 + 1  # above the largest process number Linux gives
    os.rename(bundle.path, f"{bundle.path}.old-{dead}")
    Path(f"{bundle.path}.tmp-{dead}").mkdir()
    with pytest.raises(BundleError, match="was not finished"), BundleWriter(bundle.path):
        assert bundle.path.is_dir()
    assert os.listdir(bundle.path.parent) == ["toy.graft"]
    Bundle.open(bundle.path)


def test_an_older_bundle_is_replaced_whole(bundle: Bundle) -> None:
    assert write(bundle.path, b"newer").file("weights/w.bin").read_bytes() == b"newer"
    assert os.listdir(bundle.path.parent) == ["toy.graft"]


def test_something_else_is_never_overwritten(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos/cat.png").write_bytes(b"cat")
    (tmp_path / "file").write_bytes(b"file")
    with pytest.raises(BundleError, match="not a bundle; choose another -o"):
        write(tmp_path / "photos")
    with pytest.raises(BundleError, match="not a folder"):
        write(tmp_path / "file")
    (tmp_path / "empty").mkdir()
    write(tmp_path / "empty")
    assert (tmp_path / "photos/cat.png").read_bytes() == b"cat"
    assert sorted(os.listdir(tmp_path)) == ["empty", "file", "photos"]


def test_an_unfinished_or_lying_bundle_is_not_published(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="not finished"), BundleWriter(tmp_path / "a"):
        pass
    with pytest.raises(BundleError, match="never written"), BundleWriter(tmp_path / "b") as writer:
        writer.finish(manifest())
    assert os.listdir(tmp_path) == []


def test_no_space_is_told_before_the_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**12, 10**12, 100 << 20))
    with (
        pytest.raises(BundleError, match=r"2.00 GiB needed, 100.0 MiB free"),
        BundleWriter(tmp_path / "big") as writer,
    ):
        writer.need(2 << 30)
    assert os.listdir(tmp_path) == []


def test_a_disk_that_fills_up_is_one_line_and_leaves_nothing(tmp_path: Path) -> None:
    def fill() -> None:
        with BundleWriter(tmp_path / "big") as writer:
            writer.path("a").write_bytes(b"x")
            raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(BundleError, match="the disk is full"):
        fill()
    assert os.listdir(tmp_path) == []


def test_a_checkpoint_file_is_linked_or_else_that_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tmp_path / "model.safetensors"
    source.write_bytes(b"w")
    lines: list[str] = []

    def cross_device(source: Path, target: Path) -> None:
        raise OSError(errno.EXDEV, "Invalid cross-device link")

    with BundleWriter(tmp_path / "out", lines.append) as writer:
        writer.path("graphs/canonical.onnx").write_bytes(b"graph")
        assert writer.link(source, "weights/a")
        assert writer.path("weights/a").samefile(source)
        assert not lines
        with pytest.raises(BundleError, match="cannot link"):
            writer.link(tmp_path / "absent", "weights/d")
        monkeypatch.setattr(os, "link", cross_device)
        assert not writer.link(source, "weights/c")
        assert "cannot be linked (Invalid cross-device link), copying" in lines[0]
        writer.finish(manifest())
    assert Bundle.open(tmp_path / "out").file("weights/a").read_bytes() == b"w"
