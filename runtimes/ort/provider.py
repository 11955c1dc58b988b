"""Opening a graph on one of ONNX Runtime's providers, and refusing one that does only half of it.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, cast

import onnx
import onnxruntime

from graftline.errors import BackendError

CUDA = "CUDAExecutionProvider"
INSTALL = 'pip install "graftline[gpu]"'
SHAPE_WORK = frozenset(
    {"Shape", "Size", "Gather", "Squeeze", "Unsqueeze", "Reshape", "Concat", "Slice", "Cast", "Add",
     "Sub", "Mul", "Div", "Mod", "Min", "Max", "ReduceMax", "Range", "Expand", "Tile", "Where",
     "Less", "Equal", "Constant", "MemcpyToHost", "MemcpyFromHost"}
)  # fmt: skip
"""Operators that reckon with shapes: on a few integers the CUDA provider leaves them to the CPU on
purpose. On numbers with a point they would bring activations there."""
FLOATS = {
    onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16,
    onnx.TensorProto.DOUBLE,
}  # fmt: skip


def version() -> str:
    """The version of ONNX Runtime."""
    return str(cast("Any", onnxruntime).__version__)


def cuda_missing() -> str:
    """Why ONNX Runtime has no CUDA here, "" when it has it."""
    if CUDA not in onnxruntime.get_available_providers():
        return f"this ONNX Runtime is built without CUDA; {INSTALL}"
    return ""


def open_on(device: str, graph: Path | bytes, threads: int) -> onnxruntime.InferenceSession:
    """Open a graph (a file, or its bytes) on `device`, "cuda" or "cpu".

    Raises BackendError, in one line, where there is no CUDA, no GPU, or where nodes that move
    activations would run on the CPU all the same.
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 4
    options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    providers: list[Any] = ["CPUExecutionProvider"]
    if device == "cuda":
        if missing := cuda_missing():
            raise BackendError(f"ort-cuda: {missing}")
        onnxruntime.preload_dlls()
        # fp32 means fp32: TensorFloat-32 keeps 10 bits of a factor
        providers = [(CUDA, {"use_tf32": "0"}), *providers]
    source = graph if isinstance(graph, bytes) else str(graph)
    try:
        session = onnxruntime.InferenceSession(source, options, providers=providers)
    except Exception as error:  # onnxruntime's exceptions share no public base class
        name = "the graph" if isinstance(graph, bytes) else graph
        raise BackendError(f"onnxruntime cannot open {name}: {error}") from error
    if device == "cuda":
        if CUDA not in session.get_providers():
            raise BackendError(
                "ort-cuda: ONNX Runtime finds no usable GPU (no NVIDIA driver, or CUDA or cuDNN "
                "libraries of another version); see graftline doctor"
            )
        _check_placement(session, float_nodes(graph))
    return session


def float_nodes(graph: Path | bytes) -> frozenset[str]:
    """Names of the nodes that read or write floating-point numbers."""
    if isinstance(graph, bytes):
        model = onnx.load_from_string(graph)
    else:
        model = onnx.load(graph, load_external_data=False)
    inner = model.graph
    values = (*inner.input, *inner.output, *inner.value_info)
    types = {v.name: v.type.tensor_type.elem_type for v in values}
    types |= {t.name: t.data_type for t in inner.initializer}
    floats = {name for name, kind in types.items() if kind in FLOATS}
    return frozenset(n.name for n in inner.node if floats & {*n.input, *n.output})


def _check_placement(session: Any, floats: frozenset[str]) -> None:
    """Raise BackendError when a node that moves activations is not on the GPU."""
    placed = (
        (graph.ep_name, node.op_type, node.name)
        for graph in session.get_provider_graph_assignment_info()
        for node in graph.get_nodes()
    )
    if left := left_behind(placed, floats):
        raise BackendError(
            f"ort-cuda: this ONNX Runtime ({onnxruntime.__version__}) has no CUDA kernel for "
            f"{', '.join(left)}; install a newer one or build with another --dtype"
        )


def left_behind(placed: Iterable[tuple[str, str, str]], floats: frozenset[str]) -> list[str]:
    """Nodes that should be on the GPU and are not, as "operator (count)", from (provider, operator,
    node); `floats` are the nodes that compute with floating-point numbers."""
    counts: dict[str, int] = {}
    for provider, operator, node in placed:
        if provider != CUDA and (node in floats or operator not in SHAPE_WORK):
            counts[operator] = counts.get(operator, 0) + 1
    return [
        f"{operator} ({count} {'node' if count == 1 else 'nodes'})"
        for operator, count in sorted(counts.items())
    ]
