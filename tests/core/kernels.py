"""One operator by its own meaning, and by ONNX Runtime's kernel."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import helper
from onnx.reference import ReferenceEvaluator

from graftline.contrib_ops import CONTRIB_OPS
from tests.rounding import assert_same_sums

MS = "com.microsoft"


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng([seed, *shape]).standard_normal(shape).astype(np.float32)


def model(op: str, inputs: list[Any], outputs: int, domain: str, options: dict[str, Any]):
    names = ["" if x is None else f"i{i}" for i, x in enumerate(inputs)]
    feed = {n: x for n, x in zip(names, inputs, strict=True) if n}
    made = [f"o{i}" for i in range(outputs)]
    node = helper.make_node(op, names, made, domain=domain, **options)
    # weights must be initializers: otherwise ONNX Runtime cannot pack them and takes another kernel
    packed = [n for n in feed if op == "MatMulNBits" and n != "i0"]
    weights = [onnx.numpy_helper.from_array(feed.pop(n), n) for n in packed]
    ports = [
        helper.make_tensor_value_info(n, helper.np_dtype_to_tensor_dtype(x.dtype), list(x.shape))
        for n, x in feed.items()
    ]
    results = [helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, None) for n in made]
    opsets = [helper.make_opsetid("", 24), helper.make_opsetid(MS, 1)]
    graph = helper.make_graph([node], "g", ports, results, weights)
    return helper.make_model(graph, opset_imports=opsets, ir_version=11), feed


def reference(op: str, inputs: list[Any], outputs: int = 1, domain: str = MS, **options: Any):
    proto, feed = model(op, inputs, outputs, domain, options)
    return ReferenceEvaluator(proto, new_ops=list(CONTRIB_OPS)).run(None, feed)


def engine(op: str, inputs: list[Any], outputs: int = 1, domain: str = MS, **options: Any):
    proto, feed = model(op, inputs, outputs, domain, options)
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads, settings.log_severity_level = 1, 4
    session = onnxruntime.InferenceSession(
        proto.SerializeToString(), settings, providers=["CPUExecutionProvider"]
    )
    return session.run(None, feed)


def agree(op: str, inputs: list[Any], outputs: int = 1, terms: int = 24, **options: Any):
    """Equal but for rounding; `terms`: additions behind one output, as wide as X by default."""
    ours, theirs = (f(op, inputs, outputs, **options) for f in (reference, engine))
    for left, right in zip(ours, theirs, strict=True):
        assert left.shape == right.shape
        assert left.dtype == right.dtype
        assert_same_sums(left, right, terms)


HEADS, KV, SLOTS, SIZE = 6, 2, 21, 16
ATTENTION_TERMS = SIZE + 2 * (SLOTS + 3)  # a score, and the weights and values of all keys
