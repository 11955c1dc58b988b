"""Graphs on ONNX Runtime's CPU provider: opening one, and running an unmodified export."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime

from graftline.errors import BackendError
from graftline.memory import give_back_memory
from graftline.ports import Port, by_role
from graftline.raw_ports import raw_feed, raw_logits, read_raw
from graftline.runtimes.session import Ints

SPIN = "50"
"""Microseconds for which the threads of an engine look for more work before they sleep. Longer, and
they are still at it after a call, on the cores that the next engine needs: two int4 engines in turn
took 18 to 31 ms for what takes 12. Shorter, and they sleep between two nodes."""
FOLDED = 1 << 20
"""Most bytes of a constant that a reference session computes ahead, and then keeps beside what it
was made of."""


def open_graph(graph: Path, threads: int, plans: bool = True) -> onnxruntime.InferenceSession:
    """Open a graph on the CPU provider. `plans`: whether it plans the memory of a run by the first
    one of its shape, which is faster and takes the first run's memory besides.

    Raises BackendError with ONNX Runtime's own reason.
    """
    options = _options(threads)
    options.enable_mem_pattern = plans
    options.add_session_config_entry("session.intra_op.spin_duration_us", SPIN)
    return _open(graph, options)


def open_reference(graph: Path) -> onnxruntime.InferenceSession:
    """Open a graph that is run a few times to compare others with: its weights are read where they
    lie in their files, none is packed or folded for speed, and what a run took is given back.

    Raises BackendError with ONNX Runtime's own reason.
    """
    options = _options(0)
    options.enable_cpu_mem_arena = False
    options.add_session_config_entry("session.disable_prepacking", "1")
    entry = "optimization.constant_folding_max_output_size_in_bytes"
    options.add_session_config_entry(entry, str(FOLDED))
    return _open(graph, options)


def _options(threads: int) -> Any:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 4
    return options


def _open(graph: Path | bytes, options: Any) -> onnxruntime.InferenceSession:
    """A session of a graph. While it opens one, ONNX Runtime lays matrices out anew even where it
    then maps them from a file, up to all of them at once; what it has freed is given back."""
    given = str(graph) if isinstance(graph, Path) else graph
    name = graph if isinstance(graph, Path) else "the graph"
    try:
        session = onnxruntime.InferenceSession(given, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's exceptions share no public base class
        raise BackendError(f"onnxruntime cannot open {name}: {error}") from error
    give_back_memory()
    return session


def open_held(
    graph: bytes, weights: Mapping[str, npt.NDArray[Any]], threads: int
) -> onnxruntime.InferenceSession:
    """Open a graph in memory, with the weights that it says lie outside: they are not copied.
    Its threads sleep between its products, for a machine that others use too.

    Raises BackendError with ONNX Runtime's own reason.
    """
    options = _options(threads)
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    values = [onnxruntime.OrtValue.ortvalue_from_numpy(array) for array in weights.values()]
    options.add_external_initializers(list(weights), values)
    return _open(graph, options)


def export_logits(graph: Path, tokens: Ints) -> npt.NDArray[np.float32]:
    """Logits [B, N, V] of an unmodified export for whole sequences, nothing cached.

    [B, 1, V] of an export that gives the last row alone.
    """
    session = open_graph(graph, os.cpu_count() or 1)
    return run_export(session, tokens)


def run_export(session: onnxruntime.InferenceSession, tokens: Ints) -> npt.NDArray[np.float32]:
    """One pass of an opened export over whole sequences [B, N], fed and read by the roles it says
    its inputs and outputs have. Raises BackendError where it says none."""
    return run_raw(session, read_raw(session.get_modelmeta().custom_metadata_map), tokens)


def run_raw(
    session: onnxruntime.InferenceSession, ports: Sequence[Port], tokens: Ints
) -> npt.NDArray[np.float32]:
    """The same of a graph that does not say what its inputs and outputs are: `ports` does."""
    names = [port.name for port in by_role(ports, "logits", "out")]
    given: dict[str, Any] = {
        name: onnxruntime.OrtValue.ortvalue_from_numpy(array)
        for name, array in raw_feed(ports, tokens).items()
    }
    values: Any = session.run_with_ort_values(names, given)
    # not copied: they may be as large as the weights
    outputs = {name: np.from_dlpack(value) for name, value in zip(names, values, strict=True)}
    return raw_logits(ports, outputs).astype(np.float32, copy=False)
