"""The oracle: run a graph on the CPU with ONNX's own reference implementation, from seeded feeds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx.reference
import onnx_ir as ir

Array = npt.NDArray[Any]
Feed = dict[str, Array]


def run(model: ir.Model, feed: Mapping[str, Array]) -> Feed:
    """Outputs by name of `model` under `feed`, computed by onnx.reference (numpy)."""
    from graftline.contrib_ops import CONTRIB_OPS

    proto = ir.to_proto(model)
    session = onnx.reference.ReferenceEvaluator(proto, new_ops=list(CONTRIB_OPS))
    wanted = {name: feed[name] for name in session.input_names if name in feed}
    values = session.run(None, wanted)
    return {name: np.asarray(v) for name, v in zip(session.output_names, values, strict=True)}
