"""Products of transposed matrices, and elements gathered by index."""

from __future__ import annotations

import numpy as np
from onnx.reference.op_run import OpRun

from graftline.contrib_ops.operands import MICROSOFT, Array


class FusedMatMul(OpRun):
    """alpha * A @ B, either of them transposed in its last two axes first."""

    op_domain = MICROSOFT

    def _run(
        self, a: Array, b: Array, *, alpha: float = 1.0, transA: int = 0, transB: int = 0
    ) -> tuple[Array, ...]:
        left = np.swapaxes(a, -1, -2) if transA else a
        right = np.swapaxes(b, -1, -2) if transB else b
        return ((np.matmul(left, right) * alpha).astype(a.dtype),)


class GatherElements(OpRun):
    """The standard operator: onnx.reference's own is wrong above 32 entries (onnx 1.23)."""

    op_domain = ""

    def _run(self, data: Array, indices: Array, *, axis: int = 0) -> tuple[Array, ...]:
        at = np.where(indices < 0, indices + data.shape[axis], indices)
        index: list[Array] = list(np.indices(at.shape, sparse=True))
        index[axis] = at
        return (data[tuple(index)],)
