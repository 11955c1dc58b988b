"""What TensorRT calls back while it builds: its log, its progress, and the stream it writes to.

The classes derive from the library's own, so they are made when the library is at hand.
"""

from __future__ import annotations

import functools
from typing import Any, BinaryIO

NOISE = ("catchCudaError", "CUDA GPU properties")
"""On a machine without a GPU every error is followed by one of the CUDA runtime; it says nothing.
"""


@functools.cache
def error_log(trt: Any) -> Any:
    """The ILogger of this process (TensorRT keeps the first it is given): `last` is its last error.
    """

    class ErrorLog(trt.ILogger):
        last = ""

        def clear(self) -> None:
            self.last = "TensorRT gave no reason"

        def log(self, severity: Any, message: str) -> None:
            wrong = severity in (trt.ILogger.ERROR, trt.ILogger.INTERNAL_ERROR)
            if wrong and not any(word in message for word in NOISE):
                self.last = " ".join(message.split())[:400]

    return ErrorLog()


def progress_monitor(trt: Any) -> Any:
    """An IProgressMonitor: `words` says where the build is, `cancelled` stops it at the next step.
    """

    class Progress(trt.IProgressMonitor):
        def __init__(self) -> None:
            super().__init__()
            self.cancelled, self.words = False, "building"
            self._steps: dict[str, int] = {}

        def phase_start(self, phase: str, parent: str | None, steps: int) -> None:
            self._steps[phase] = steps
            self.words = phase.lower()

        def step_complete(self, phase: str, step: int) -> bool:
            steps = self._steps.get(phase, 0)
            self.words = f"{phase.lower()}, step {step + 1} of {steps}"
            return not self.cancelled

        def phase_finish(self, phase: str) -> None:
            self._steps.pop(phase, None)

    return Progress()


def engine_writer(trt: Any, file: BinaryIO) -> Any:
    """An IStreamWriter into a file: the engine is never held in memory twice."""

    class EngineWriter(trt.IStreamWriter):
        failure: OSError | None = None

        def __init__(self) -> None:
            trt.IStreamWriter.__init__(self)

        def write(self, data: Any) -> int:
            try:
                return file.write(data)
            except OSError as error:
                self.failure = error
                return 0

    return EngineWriter()
