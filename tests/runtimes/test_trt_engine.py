"""What is refused before an engine is opened, and that CUDA and TensorRT are called as they want.

Neither does anything here without a GPU, but both check what they are given first: a wrong name or
type is a TypeError, a right call the driver's own refusal. On a GPU, see test_trt_gpu.py.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent))

from trt_pair import GRAFTED, lowered, plan_of

from graftline.build.tensorrt.builder import BuildOptions, EngineFile, build
from graftline.build.tensorrt.target import FLAVOURS, gpu_capability
from graftline.bundle.manifest import Manifest, Stage
from graftline.errors import BackendError, BundleError
from graftline.facts import Facts
from graftline.models.decoder import TinyDecoder
from graftline.ports import Port
from graftline.runtimes.trt import cuda as cuda_device
from graftline.runtimes.trt.cuda import CudaDevice, capability, cuda, look
from graftline.runtimes.trt.device import Box
from graftline.runtimes.trt.engine import TrtContext, TrtEngine, tensorrt
from graftline.runtimes.trt.plan import LIBRARIES, EnginePlan, Here

pytest.importorskip("cuda.bindings", reason='pip install "graftline[trt]"')
without_gpu = pytest.mark.skipif(gpu_capability() is not None, reason="this machine has a GPU")

PLAN = EnginePlan(
    file="engines/e.engine",
    graph="trt-rtx:sm89+sm120",
    target="trt-rtx:sm89+sm120",
    library="tensorrt-rtx-cu13 1.7.1.116",
    profiles={"decode.8": {"tokens": [[1, 8], [2, 8], [2, 8]]}},
    version_compatible=False,
    weightless=False,
    plugins={},
    rebuild="graftline optimize X -o Y",
    tokens="tokens",
)
HERE = Here(89, "", {"tensorrt-rtx-cu13": "1.7.1.116"})


def test_an_engine_for_this_machine_passes() -> None:
    PLAN.check(HERE)
    later = Here(120, "", {"tensorrt-rtx-cu13": "1.8.0.1"})
    replace(PLAN, version_compatible=True).check(later)


@pytest.mark.parametrize(
    ("here", "message"),
    [
        (Here(None, "no driver"), "no NVIDIA GPU or driver here (no driver); run it on such a GPU"),
        (Here(90), "this machine has sm90; run it on such a GPU, or rebuild with another --target"),
        (Here(89, "", {}), "not installed; pip install tensorrt-rtx-cu13==1.7.1.116"),
        (Here(89, "", {"tensorrt-rtx-cu13": "1.8.0.1"}),
         "built by tensorrt-rtx-cu13 1.7.1.116, and 1.8.0.1 is installed; "
         "pip install tensorrt-rtx-cu13==1.7.1.116, or rebuild"),
    ],
)  # fmt: skip
def test_what_differs_is_named_with_what_to_do(here: Here, message: str) -> None:
    with pytest.raises(BackendError) as caught:
        PLAN.check(here)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert "pip install" in str(caught.value) or str(caught.value).endswith(PLAN.rebuild)


@pytest.mark.parametrize("found", ["1.6.9.9", "2.0.0.0"])
def test_version_compatible_means_later_of_the_same_major(found: str) -> None:
    with pytest.raises(BackendError, match="is installed"):
        replace(PLAN, version_compatible=True).check(
            replace(HERE, versions={"tensorrt-rtx-cu13": found})
        )


def test_another_plugin_is_refused() -> None:
    plan = replace(PLAN, plugins={"TreeVerify": "0123456789abcdef"})
    plan.check_plugins({"TreeVerify": "0123456789abcdef", "KVCommit": "9"})
    with pytest.raises(BackendError, match="TreeVerify is 0123456789ab, now fedc; rebuild: graft"):
        plan.check_plugins({"TreeVerify": "fedc"})
    with pytest.raises(BackendError, match="unknown to this graftline"):
        plan.check_plugins({})


def test_the_packages_are_the_builders() -> None:
    assert {f.name: f.package for f in FLAVOURS.values()} == LIBRARIES


def manifest(ports: tuple[Port, ...] = (), **engine: Any) -> Manifest:
    stages = {"trt": Stage("engine", "g.onnx", ports, Facts())}
    extra = {"engine": engine} if engine else {}
    return Manifest("m", "plain", PLAN.target, stages, PLAN.rebuild, extra=extra)


def test_a_plan_is_read_from_the_manifest_of_a_build(tmp_path: Path) -> None:
    options = BuildOptions(rows=(8, 1), chunk=16, batch=2, version_compatible=True)
    _, _, ports = lowered(
        TinyDecoder(), f"{GRAFTED} | lower-tensorrt{{capacity=64}}", tmp_path / "g"
    )
    made = EngineFile(
        tmp_path, 1, PLAN.target, PLAN.library, options.profiles(ports), options, 1.0, 0
    )
    plan = EnginePlan.read(manifest(ports, file="e", graph="trt", **made.facts()))
    assert plan.capabilities == (89, 120)
    assert plan.flavour == "trt-rtx"
    assert plan.decoding == {1: 1, 8: 0}
    assert (plan.rows("prefill"), plan.batch, plan.version_compatible) == (16, 2, True)
    assert plan.check_capacity(ports) == 56
    with pytest.raises(BackendError, match="a capacity of 57 was asked for, and 64 slots"):
        plan.check_capacity(ports, 57)
    with pytest.raises(BundleError, match="says nothing of the engine's 'options'"):
        EnginePlan.read(manifest(file="e", graph="trt"))


@without_gpu
def test_without_a_driver_cuda_says_so() -> None:
    with pytest.raises(BackendError, match="cudaGetDeviceCount failed: CUDA driver version"):
        capability()
    here = look("trt-rtx")
    assert here.capability is None
    assert "cudaErrorInsufficientDriver" in here.why


def test_missing_bindings_are_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cuda.bindings", None)
    with pytest.raises(BackendError, match=r'imported .*; pip install "graftline\[trt\]"'):
        cuda()
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    assert tensorrt("trt") is None
    assert look("trt") == Here(None, look("trt").why, {})


@without_gpu
def test_every_cuda_call_takes_what_it_is_given() -> None:
    device: Any = object.__new__(CudaDevice)
    runtime = cuda()
    device._cuda, device._stream, device._held = runtime, runtime.cudaStream_t(0), set()
    columns, box = np.zeros((4, 16), np.uint8), Box(8, 2, 3, 64, 256)
    calls = {
        "cudaMalloc": lambda: device.allocate(64),
        "cudaStreamSynchronize": lambda: device.release(1 << 20),
        "cudaMallocHost": lambda: device.pinned(64),
        "cudaMemcpyAsync": lambda: device.upload(1 << 20, columns),
        "cudaMemcpy2DAsync": lambda: device.upload_columns(1 << 20, columns, 2, 5),
        "cudaMemcpy3DAsync": lambda: device.move(1 << 20, 1 << 21, box),
        "cudaStreamBeginCapture": lambda: device.capture(lambda: None),
    }
    for name, work in calls.items():
        with pytest.raises(BackendError, match=f"CUDA: {name} failed: CUDA driver version is"):
            work()
    with pytest.raises(BackendError, match="CUDA: cudaMemcpyAsync failed"):
        device.download(columns, 1 << 20)
    others = [
        ("cudaMemsetAsync", 1 << 20, 0, 64, device._stream),
        ("cudaStreamCreateWithFlags", runtime.cudaStreamNonBlocking),
        ("cudaStreamEndCapture", device._stream),
        ("cudaGraphInstantiate", runtime.cudaGraph_t(0), 0),
        ("cudaGraphLaunch", runtime.cudaGraphExec_t(0), device._stream),
        ("cudaGraphDestroy", runtime.cudaGraph_t(0)),
        ("cudaGraphExecDestroy", runtime.cudaGraphExec_t(0)),
        ("cudaGetDeviceProperties", 0),
        ("cudaFree", 1 << 20),
        ("cudaFreeHost", 1 << 20),
    ]
    for name, *given in others:
        with pytest.raises(BackendError, match=f"CUDA: {name} failed"):
            cuda_device.call(runtime, name, *given)
    assert isinstance(runtime.cudaDeviceProp().name, bytes)


USED = {
    "Runtime": ("deserialize_cuda_engine",),
    "ICudaEngine": (
        "num_optimization_profiles", "num_io_tensors", "get_tensor_name", "get_tensor_mode",
        "create_execution_context",
    ),
    "IExecutionContext": (
        "set_optimization_profile_async", "set_input_shape", "set_tensor_address", "engine",
        "execute_async_v3",
    ),
    "ILogger": ("ERROR", "INTERNAL_ERROR"),
    "TensorIOMode": ("INPUT",),
}  # fmt: skip
ONLY_RTX = {
    "Runtime": ("get_engine_validity", "engine_header_size"),
    "IRuntimeConfig": ("dynamic_shapes_kernel_specialization_strategy",),
    "IExecutionContext": ("is_stream_capturable",),
    "ICudaEngine": ("create_runtime_config",),
    "DynamicShapesKernelSpecializationStrategy": ("EAGER", "LAZY"),
    "EngineValidity": ("INVALID",),
    "Refitter": ("refit_cuda_engine",),
    "OnnxParserRefitter": ("refit_from_file",),
}


@pytest.mark.parametrize(
    ("library", "used"),
    [("tensorrt_rtx", USED), ("tensorrt_rtx", ONLY_RTX), ("tensorrt_lean_bindings", USED)],
)
def test_the_libraries_have_what_is_used(library: str, used: dict[str, tuple[str, ...]]) -> None:
    """tensorrt_lean_bindings has the classes of TensorRT 11 that its runtime has."""
    module = pytest.importorskip(library)
    missing = [f"{c}.{n}" for c, names in used.items() for n in names
               if not hasattr(getattr(module, c, None), n)]  # fmt: skip
    assert missing == []


@without_gpu
def test_tensorrt_says_why_it_cannot_open_an_engine(tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx", reason="pip install tensorrt-rtx-cu13")
    graph, _, ports = lowered(
        TinyDecoder(), "anchors | kv-cache | lower-tensorrt{capacity=64}", tmp_path / "g"
    )
    file = tmp_path / "e.engine"
    build(graph, ports, "trt-rtx:sm89", file, BuildOptions(rows=(1,), chunk=16))
    with pytest.raises(BackendError, match=r"of the engine: .*driver.*; rebuild: graftline"):
        TrtEngine(plan_of(ports), file, graph)
    file.write_bytes(b"no engine" * 100)
    with pytest.raises(BackendError, match="says of the engine: malformed engine; rebuild"):
        TrtEngine(plan_of(ports), file, graph)


class Refusing:
    """A context of TensorRT's that refuses one thing."""

    def __init__(self, what: str) -> None:
        names = ["tokens", "logits"]
        self.engine = SimpleNamespace(
            num_io_tensors=2,
            get_tensor_name=lambda i: names[i],
            get_tensor_mode=lambda n: SimpleNamespace(name="INPUT" if n == "tokens" else "OUTPUT"),
        )
        self.shaped: list[str] = []
        for name in (
            "set_optimization_profile_async", "set_input_shape", "set_tensor_address",
            "execute_async_v3", "is_stream_capturable",
        ):  # fmt: skip
            setattr(self, name, self._answer(name, name != what))

    def _answer(self, name: str, good: bool) -> Any:
        def answer(*given: Any) -> bool:
            if name == "set_input_shape":
                self.shaped.append(given[0])
            return good

        return answer


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("set_optimization_profile_async", "profile 2 cannot be set: so it was"),
        ("set_input_shape", r"input tokens cannot have the shape \[1, 3\]: so it was"),
        ("set_tensor_address", "tensor tokens cannot lie at 0x1000: so it was"),
        ("execute_async_v3", "the engine failed in a step: so it was"),
    ],
)
def test_whatever_tensorrt_refuses_is_an_error(what: str, message: str) -> None:
    engine: Any = object.__new__(TrtEngine)
    engine._plan, engine._log = PLAN, SimpleNamespace(last="so it was")

    def use(context: Any) -> None:
        made = TrtContext(engine, context, 2, 0)
        made.bind("tokens", 4096, [1, 3])
        made.enqueue()

    with pytest.raises(BackendError, match=message):
        use(Refusing(what))
    good = Refusing("is_stream_capturable")
    context = TrtContext(engine, good, 2, 0)
    context.bind("logits", 4096, [1, 3])
    assert good.shaped == [], "outputs get their shape from the inputs"
    assert not context.recordable()
