"""The libraries behind the commands: kept silent, and a missing one reported in one line."""

from __future__ import annotations

import logging
import os
import sys
import warnings

EXTRAS = {
    "torch": "export",
    "transformers": "export",
    "accelerate": "export",
    "gguf": "export",
    "sentencepiece": "export",
    "torchmetrics": "export",
    "cuda": "trt",
    "tensorrt_rtx": "tensorrt",
    "triton": "kernels",
}
"""The extra of graftline that brings each optional library, by the name it is imported by."""
SETTINGS = {
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "TQDM_DISABLE": "1",
    "TRANSFORMERS_VERBOSITY": "error",
    "TRANSFORMERS_NO_ADVISORY_WARNINGS": "1",
    "TORCH_CPP_LOG_LEVEL": "ERROR",
}
"""Read by the libraries when they are imported; what the user has set stands."""


def silence() -> None:
    """Keep other libraries from writing to the terminal: progress bars, logs, warnings.

    What goes wrong in them reaches the user as an exception. Warnings of graftline's own modules,
    and those that the user asks Python for (`python -W`), are still shown.
    """
    for name, value in SETTINGS.items():
        os.environ.setdefault(name, value)
    logging.disable(logging.CRITICAL)
    if not sys.warnoptions:
        warnings.filterwarnings("ignore", module=r"(?!graftline)")


def silence_onnxruntime() -> None:
    """The same for the log of ONNX Runtime, which has no other switch; imports it."""
    import onnxruntime

    onnxruntime.set_default_logger_severity(4)  # only what ends the process


def missing(error: ImportError) -> str:
    """One line for a library that cannot be imported, with the command that installs it."""
    name = (error.name or "").partition(".")[0]
    if isinstance(error, ModuleNotFoundError) and name in EXTRAS:
        return f'{name} is not installed; run: pip install "graftline[{EXTRAS[name]}]"'
    reason = str(error).strip().partition("\n")[0]
    return f"a library cannot be imported ({reason}); see: graftline doctor"
