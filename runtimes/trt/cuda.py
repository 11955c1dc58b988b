"""The GPU itself: CUDA's memory, copies and graphs on one stream. The only file that imports CUDA,
and only when an engine is opened. What CUDA refuses is a BackendError with its own words.
"""

from __future__ import annotations

import ctypes
import weakref
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from graftline.errors import BackendError
from graftline.runtimes.trt.device import Array, Box, Enqueue
from graftline.runtimes.trt.engine import TrtContext, TrtEngine, tensorrt
from graftline.runtimes.trt.plan import LIBRARIES, Here

INSTALL = 'pip install "graftline[trt]"'


def cuda() -> Any:
    """The module cuda.bindings.runtime. Raises BackendError with the command that installs it."""
    try:
        from cuda.bindings import runtime  # pyright: ignore[reportAttributeAccessIssue]
    except ImportError as error:
        raise BackendError(f"cuda-bindings cannot be imported ({error}); {INSTALL}") from error
    return cast("Any", runtime)


def call(runtime: Any, name: str, *arguments: Any) -> Any:
    """One call of CUDA's: its result, or BackendError with CUDA's words for what went wrong."""
    error, *results = getattr(runtime, name)(*arguments)
    if error != runtime.cudaError_t.cudaSuccess:
        words = runtime.cudaGetErrorString(error)[1]
        said = words.decode() if isinstance(words, bytes) else str(words)
        raise BackendError(f"CUDA: {name} failed: {said} ({error.name})")
    return results[0] if results else None


def capability() -> int:
    """Compute capability of the first GPU, as 89 for 8.9. Raises BackendError without one."""
    runtime = cuda()
    call(runtime, "cudaGetDeviceCount")
    kinds = runtime.cudaDeviceAttr
    major = call(runtime, "cudaDeviceGetAttribute", kinds.cudaDevAttrComputeCapabilityMajor, 0)
    minor = call(runtime, "cudaDeviceGetAttribute", kinds.cudaDevAttrComputeCapabilityMinor, 0)
    return 10 * int(major) + int(minor)


def look(flavour: str) -> Here:
    """What this machine has to run engines of a flavour with; raises nothing."""
    library = tensorrt(flavour)
    versions = {} if library is None else {LIBRARIES[flavour]: str(library.__version__)}
    try:
        return Here(capability(), "", versions)
    except BackendError as error:
        return Here(None, str(error), versions)


class CudaDevice:
    """The first GPU, and an engine that runs on it. See `runtimes.trt.device.Device`."""

    def __init__(self, engine: TrtEngine) -> None:
        self._cuda, self._engine = cuda(), engine
        self._held: set[int] = set()
        flags = self._cuda.cudaStreamNonBlocking
        self._stream = self._call("cudaStreamCreateWithFlags", flags)
        self._contexts: dict[int, TrtContext] = {}
        gpu = self._call("cudaGetDeviceProperties", 0).name.decode()
        self.name = f"{gpu} {engine.library}"
        weakref.finalize(self, _free, self._cuda, self._held)

    def allocate(self, size: int) -> int:
        """Zeroed device memory."""
        address = int(self._call("cudaMalloc", size))
        self._held.add(address)
        self._call("cudaMemsetAsync", address, 0, size, self._stream)
        return address

    def release(self, address: int) -> None:
        """Give it back, once all that was enqueued is done."""
        self.synchronize()
        self._held.discard(address)
        self._call("cudaFree", address)

    def pinned(self, size: int) -> npt.NDArray[np.uint8]:
        """Zeroed page-locked host memory, given back with the last array over it."""
        address = int(self._call("cudaMallocHost", size))
        buffer: Any = (ctypes.c_uint8 * size).from_address(address)
        weakref.finalize(buffer, self._cuda.cudaFreeHost, address)
        array = np.frombuffer(buffer, np.uint8)
        array[:] = 0
        return array

    def upload(self, to: int, source: Array) -> None:
        """Host to device."""
        kind = self._cuda.cudaMemcpyKind.cudaMemcpyHostToDevice
        self._call("cudaMemcpyAsync", to, source.ctypes.data, source.nbytes, kind, self._stream)

    def upload_columns(self, to: int, source: Array, first: int, last: int) -> None:
        """Host to device, one run of bytes per row."""
        kind = self._cuda.cudaMemcpyKind.cudaMemcpyHostToDevice
        pitch, start = source.strides[0], first * source.itemsize
        width = (last - first) * source.itemsize
        self._call(
            "cudaMemcpy2DAsync", to + start, pitch, source.ctypes.data + start, pitch, width,
            source.shape[0], kind, self._stream,
        )  # fmt: skip

    def download(self, to: Array, source: int) -> None:
        """Device to host."""
        kind = self._cuda.cudaMemcpyKind.cudaMemcpyDeviceToHost
        self._call("cudaMemcpyAsync", to.ctypes.data, source, to.nbytes, kind, self._stream)

    def move(self, to: int, source: int, box: Box, laid: Box | None = None) -> None:
        """Device to device, in one copy."""
        runtime = self._cuda
        copy = runtime.cudaMemcpy3DParms()

        def pitched(address: int, lying: Box) -> Any:
            rows = lying.slice_pitch // lying.pitch
            return runtime.make_cudaPitchedPtr(address, lying.pitch, lying.width, rows)

        copy.srcPtr, copy.dstPtr = pitched(source, box), pitched(to, laid or box)
        copy.extent = runtime.make_cudaExtent(box.width, box.height, box.depth)
        copy.kind = runtime.cudaMemcpyKind.cudaMemcpyDeviceToDevice
        self._call("cudaMemcpy3DAsync", copy, self._stream)

    def context(self, profile: int, fixed: bool) -> TrtContext:
        """The execution context of a profile; kept, because making one compiles kernels."""
        if profile not in self._contexts:
            self._contexts[profile] = self._engine.context(profile, fixed, int(self._stream))
            self.synchronize()
        return self._contexts[profile]

    def capture(self, work: Enqueue) -> Enqueue:
        """Record `work` on the stream as a CUDA graph."""
        mode = self._cuda.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        self._call("cudaStreamBeginCapture", self._stream, mode)
        try:
            work()
        except BackendError:
            self._cuda.cudaStreamEndCapture(self._stream)  # its own error would hide the first
            raise
        graph = self._call("cudaStreamEndCapture", self._stream)
        launch = _Recorded(self._cuda, self._call("cudaGraphInstantiate", graph, 0), self._stream)
        self._call("cudaGraphDestroy", graph)
        return launch

    def synchronize(self) -> None:
        """Wait for the stream."""
        self._call("cudaStreamSynchronize", self._stream)

    def _call(self, name: str, *arguments: Any) -> Any:
        return call(self._cuda, name, *arguments)


class _Recorded:
    """A CUDA graph that can be launched; it is given back with this object."""

    def __init__(self, runtime: Any, executable: Any, stream: Any) -> None:
        self._runtime, self._executable, self._stream = runtime, executable, stream
        weakref.finalize(self, runtime.cudaGraphExecDestroy, executable)

    def __call__(self) -> None:
        call(self._runtime, "cudaGraphLaunch", self._executable, self._stream)


def _free(runtime: Any, held: set[int]) -> None:
    """Give everything back; what fails then, at the end of a process, helps nobody."""
    for address in held:
        runtime.cudaFree(address)
