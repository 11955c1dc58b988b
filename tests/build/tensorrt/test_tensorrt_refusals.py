"""What a TensorRT build refuses, and that nothing is left where one ends early."""

from __future__ import annotations

import errno
import sys
import threading
from pathlib import Path
from typing import Any

import onnx_ir as ir
import pytest

from graftline.build.tensorrt import builder as build_tensorrt
from graftline.build.tensorrt.builder import BuildOptions
from graftline.build.tensorrt.target import FLAVOURS, Target, gpu_capability
from graftline.build.tensorrt.watch import progress_monitor
from graftline.errors import BackendError
from graftline.models.decoder import TinyDecoder
from tests.build.tensorrt.rtx_engines import FULL, engine, graph, trt


@pytest.mark.parametrize("options", [{"batch": 0}, {"rows": (8, 0)}, {"rows": ()}, {"chunk": -1}])
def test_bad_options_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(BackendError, match="TensorRT build: "):
        BuildOptions(**options)


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("trt-rtx:sm90", "trt-rtx builds for no GPU 'sm90'; trt:sm90 does"),
        ("trt-rtx:sm88", "trt-rtx builds for no GPU 'sm88'; did you mean 'sm8"),
        ("trt-rtx", "trt-rtx builds for no GPU ''; known: sm120, sm121, sm75"),
        ("trt-rxt:sm89", "unknown TensorRT flavour 'trt-rxt'; did you mean 'trt-rtx'?"),
        ("trt-rtx:sm89+sm89", "trt-rtx:sm89+sm89 names a GPU twice"),
        ("trt:sm89+sm90", "builds for the GPU in the machine, one at a time"),
    ],
)
def test_targets_are_refused_in_words(target: str, message: str) -> None:
    with pytest.raises(BackendError) as caught:
        Target.parse(target)
    assert message in str(caught.value)


def test_targets_are_read_and_written() -> None:
    assert str(Target.parse("trt-rtx:sm89+sm120")) == "trt-rtx:sm89+sm120"
    known = {int(name[2:]) for name in trt.ComputeCapability.__members__ if name.startswith("SM")}
    assert set(FLAVOURS["trt-rtx"].capabilities) == known


def test_bf16_is_refused_where_a_gpu_has_none(tmp_path: Path) -> None:
    with pytest.raises(BackendError, match="sm75 has no bf16; use --dtype fp16"):
        Target.parse("trt-rtx:sm75+sm89").check_dtype("bf16")
    with pytest.raises(BackendError, match=r"the build failed: .*HW-specific datatypes: b16"):
        engine(graph(tmp_path, "kv-cache", "bf16"), "trt-rtx:sm75")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["graph.onnx"]


def test_a_missing_library_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", None)
    with pytest.raises(BackendError, match=r"cannot be imported .*; pip install tensorrt-rtx-cu13"):
        engine(graph(tmp_path, "kv-cache"), "trt-rtx:sm89")


def test_a_gpu_that_is_not_here_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("graftline.build.tensorrt.target.gpu_capability", lambda: 80)
    with pytest.raises(BackendError, match=r"trt:sm90 is built on .* this machine has sm80; run"):
        Target.parse("trt:sm90").check_machine()
    Target.parse("trt:sm80").check_machine()


@pytest.mark.skipif(gpu_capability() is not None, reason="this machine has a GPU")
@pytest.mark.parametrize("options", [{"refittable": True}, {"strip_weights": True}])
def test_refitting_needs_a_gpu(tmp_path: Path, options: dict[str, Any]) -> None:
    with pytest.raises(BackendError, match="built on a machine with a GPU"):
        engine(graph(tmp_path, "kv-cache"), "trt-rtx:sm89", BuildOptions(**options))


def test_what_the_importer_refuses_is_named(tmp_path: Path) -> None:
    file = graph(tmp_path, "kv-cache")
    model = ir.load(file)
    odd = next(n for n in model.graph if n.op_type == "Attention")
    odd.name, odd.attributes["softcap"] = "odd", ir.AttrFloat32("softcap", 2.0)
    ir.save(model, file)
    with pytest.raises(BackendError, match=r"cannot import graph\.onnx: Attention '.*softcap"):
        engine(file, "trt-rtx:sm89")


def test_interrupting_leaves_nothing(tmp_path: Path) -> None:
    """The watcher stands for the key press: it is heard in the same place."""

    def press(line: str) -> None:
        raise KeyboardInterrupt

    file = graph(tmp_path, FULL, spec=TinyDecoder(layers=8))
    with pytest.raises(KeyboardInterrupt):
        engine(file, "trt-rtx:sm89", watch=press)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["graph.onnx"]
    assert "tensorrt-build" not in {t.name for t in threading.enumerate()}


def test_a_full_disk_is_told_as_such(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Full:
        def write(self, data: bytes) -> int:
            raise OSError(errno.ENOSPC, "No space left on device")

    real = build_tensorrt.engine_writer
    full = Full()
    monkeypatch.setattr(build_tensorrt, "engine_writer", lambda library, file: real(library, full))
    with pytest.raises(OSError, match="No space left"):
        engine(graph(tmp_path, "kv-cache"), "trt-rtx:sm89")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["graph.onnx"]


def test_a_cancelled_monitor_stops_the_builder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monitor = progress_monitor(trt)
    monitor.cancelled = True
    monkeypatch.setattr(build_tensorrt, "progress_monitor", lambda library: monitor)
    with pytest.raises(BackendError, match="the build failed"):
        engine(graph(tmp_path, FULL), "trt-rtx:sm89")
    assert "step 1 of" in monitor.words, "it went on after its first step"
