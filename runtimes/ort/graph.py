"""Graphs on ONNX Runtime's CPU provider: opening one, and running an unmodified export."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime

from graftline.errors import BackendError
from graftline.runtimes.session import Ints


def open_graph(
    graph: Path, threads: int, company: bool = False
) -> onnxruntime.InferenceSession:
    """Open a graph on the CPU provider; with `company`, another engine works between its calls.

    Raises BackendError with ONNX Runtime's own reason.
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    if company:
        # or its threads go on spinning after a call, on the cores that the other engine now needs:
        # three int4 draft steps and one fp32 step of 4 rows took 75 ms in place of 39. Alone it
        # costs 2 % of a step to wake them again.
        options.add_session_config_entry("session.force_spinning_stop", "1")
    options.log_severity_level = 4
    try:
        return onnxruntime.InferenceSession(str(graph), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's exceptions share no public base class
        raise BackendError(f"onnxruntime cannot open {graph}: {error}") from error


def export_logits(graph: Path, tokens: Ints) -> npt.NDArray[np.float32]:
    """Logits [B, N, V] of an unmodified export for whole sequences, nothing cached."""
    session = open_graph(graph, os.cpu_count() or 1)
    return run_export(session, tokens)


def run_export(session: onnxruntime.InferenceSession, tokens: Ints) -> npt.NDArray[np.float32]:
    """One pass of an opened export over whole sequences [B, N]; a past, if any, is empty."""
    batch, count = tokens.shape
    feed: dict[str, npt.NDArray[Any]] = {}
    for port in session.get_inputs():
        if "past" in port.name:
            shape = [
                batch if i == 0 else d if isinstance(d, int) else 0
                for i, d in enumerate(port.shape)
            ]
            feed[port.name] = np.zeros(shape, np.float32)
        elif "mask" in port.name:
            feed[port.name] = _open_mask(port, batch, count)
        elif "position" in port.name:
            feed[port.name] = np.tile(np.arange(count, dtype=np.int64), (batch, 1))
        else:
            feed[port.name] = tokens
    return np.asarray(session.run([session.get_outputs()[0].name], feed)[0])


def _open_mask(port: Any, batch: int, count: int) -> npt.NDArray[Any]:
    """An attention mask that hides nothing but the future, of the kind an export's input takes."""
    dtype = {"tensor(bool)": np.bool_, "tensor(float)": np.float32}.get(port.type, np.int64)
    if len(port.shape) == 2:
        return np.ones((batch, count), dtype)
    seen = np.broadcast_to(np.tri(count, dtype=np.bool_), (batch, 1, count, count))
    if dtype is np.float32:
        return np.where(seen, np.float32(0), np.finfo(np.float32).min)
    return seen.astype(dtype)
