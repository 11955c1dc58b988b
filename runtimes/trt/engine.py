"""A TensorRT engine opened on the GPU, and its execution contexts. The only file of the runtime
that imports TensorRT, and only then. What it refuses is a BackendError with its last error.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np

from graftline.errors import BackendError
from graftline.runtimes.trt.device import Array
from graftline.runtimes.trt.plan import EnginePlan


def tensorrt(flavour: str) -> Any | None:
    """The library that runs engines of this flavour, or None where it is not installed."""
    try:
        if flavour == "trt-rtx":
            import tensorrt_rtx as library
        else:
            import tensorrt as library  # pyright: ignore[reportMissingImports]
    except ImportError:
        return None
    return cast("Any", library)


class TrtEngine:
    """The engine in `file`. `graph` is what it was built from: an engine without weights takes them
    from it. `EnginePlan.check` comes first."""

    def __init__(self, plan: EnginePlan, file: Path, graph: Path) -> None:
        library = tensorrt(plan.flavour)
        assert library is not None, "EnginePlan.check says so in words"
        self._plan, self._trt, self._log = plan, library, _error_log(library)
        self.library = f"{plan.flavour} {library.__version__}"
        self._runtime = library.Runtime(self._log)
        self._engine = self._open(file, graph)

    def context(self, profile: int, fixed: bool, stream: int) -> TrtContext:
        """A context for the profile of that number, running on a stream. See `Device.context`."""
        return TrtContext(self, self._create(fixed), profile, stream)

    def refusal(self, doing: str) -> BackendError:
        """What TensorRT said when it would not."""
        return BackendError(f"{self._plan.target}: {doing}: {self._log.last}")

    def _open(self, file: Path, graph: Path) -> Any:
        plan = self._plan
        held = np.memmap(file, np.uint8, "r")  # read as it is needed, not held twice
        self._check_header(held)
        engine = self._runtime.deserialize_cuda_engine(held)
        if engine is None:
            raise self.refusal(f"TensorRT cannot open {file}")
        if engine.num_optimization_profiles != len(plan.profiles):
            raise plan.refusal(
                f"{file} has {engine.num_optimization_profiles} profiles, the manifest names "
                f"{len(plan.profiles)}", rebuild=True
            )  # fmt: skip
        if plan.weightless:
            refitter = self._trt.Refitter(engine, self._log)
            parser = self._trt.OnnxParserRefitter(refitter, self._log)
            if not parser.refit_from_file(str(graph)) or not refitter.refit_cuda_engine():
                raise self.refusal(f"the weights of {graph} do not fit the engine {file}")
        return engine

    def _check_header(self, held: Array) -> None:
        """Ask TensorRT-RTX, which can tell from the first bytes; TensorRT cannot."""
        if not hasattr(self._runtime, "get_engine_validity"):
            return
        head = held[: self._runtime.engine_header_size].tobytes()
        validity, reasons = self._runtime.get_engine_validity(head)
        if validity == self._trt.EngineValidity.INVALID:
            known: Mapping[str, Any] = self._trt.EngineInvalidityDiagnostics.__members__
            said = [n.lower().replace("_", " ") for n, v in known.items() if reasons & v.value]
            why = ", ".join(said) or self._log.last
            raise self._plan.refusal(f"TensorRT-RTX says of the engine: {why}", rebuild=True)

    def _create(self, fixed: bool) -> Any:
        """An execution context. TensorRT-RTX compiles kernels on this machine: at once for a few
        shapes that run often; for the many lengths of a prompt when it finds the time."""
        strategies = getattr(self._trt, "DynamicShapesKernelSpecializationStrategy", None)
        if strategies is None:
            made = self._engine.create_execution_context()
        else:
            config = self._engine.create_runtime_config()
            config.dynamic_shapes_kernel_specialization_strategy = (
                strategies.EAGER if fixed else strategies.LAZY
            )
            made = self._engine.create_execution_context(config)
        if made is None:
            raise self.refusal("no execution context")
        return made


class TrtContext:
    """A TensorRT execution context. See `runtimes.trt.device.Context`."""

    def __init__(self, engine: TrtEngine, context: Any, profile: int, stream: int) -> None:
        self._engine, self._context, self._stream = engine, context, stream
        if not context.set_optimization_profile_async(profile, stream):
            raise engine.refusal(f"profile {profile} cannot be set")
        inside = context.engine
        names = [inside.get_tensor_name(i) for i in range(inside.num_io_tensors)]
        self._inputs = {n for n in names if inside.get_tensor_mode(n).name == "INPUT"}

    def bind(self, name: str, address: int, shape: Sequence[int]) -> None:
        """Address of a tensor and, of an input, its shape."""
        if name in self._inputs and not self._context.set_input_shape(name, tuple(shape)):
            raise self._engine.refusal(f"input {name} cannot have the shape {list(shape)}")
        if not self._context.set_tensor_address(name, address):
            raise self._engine.refusal(f"tensor {name} cannot lie at {address:#x}")

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of an output for the inputs as they are bound."""
        found = tuple(self._context.get_tensor_shape(name))
        if any(size < 0 for size in found):
            raise self._engine.refusal(f"the shape of {name} is known only after a run: {found}")
        return found

    def enqueue(self) -> None:
        """One run of the engine on the device's stream."""
        if not self._context.execute_async_v3(self._stream):
            raise self._engine.refusal("the engine failed in a step")

    def recordable(self) -> bool:
        """TensorRT-RTX tells; TensorRT can record engines of such graphs."""
        asks = getattr(self._context, "is_stream_capturable", None)
        return True if asks is None else bool(asks(self._stream))


def _error_log(trt: Any) -> Any:
    """An ILogger that keeps the last error."""

    class ErrorLog(trt.ILogger):
        last = "TensorRT gave no reason"

        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.ERROR, trt.ILogger.INTERNAL_ERROR):
                self.last = " ".join(message.split())[:400]

    return ErrorLog()
