"""A session of a graph in memory, whose weights are read from where they lie."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from graftline.facts import DecoderFacts
from graftline.ports import Port
from graftline.runtimes.ort.graph import open_held
from graftline.runtimes.ort.session import OrtSession
from graftline.tensors import static_shape

INLINE = 1 << 10
"""Tensors of fewer bytes stay in the graph: shapes and axes are read from there."""


class HeldSession(OrtSession):
    """A lowered decoder that no file holds, for a text or two. Trees are not scored."""

    def __init__(
        self, model: ir.Model, facts: DecoderFacts, ports: Sequence[Port], *, capacity: int
    ) -> None:
        self._graph_bytes, self._weights = _apart(model)
        super().__init__(Path(), facts, ports, capacity=capacity)

    def _open(self) -> Any:
        return open_held(self._graph_bytes, self._weights, self.threads)


def open_model(model: ir.Model, threads: int) -> Any:
    """Open a graph in memory that is no decoder's step, to be run as it is."""
    return open_held(*_apart(model), threads)


def _apart(model: ir.Model) -> tuple[bytes, dict[str, npt.NDArray[Any]]]:
    """A graph without its large weights, and these by name."""
    graph, weights = model.clone(), dict[str, npt.NDArray[Any]]()
    for name, value in graph.graph.initializers.items():
        tensor = value.const_value
        if tensor is None:
            continue
        if tensor.nbytes < INLINE:
            value.const_value = ir.Tensor(tensor.numpy(), dtype=tensor.dtype, name=name)
            continue
        weights[name] = np.ascontiguousarray(tensor.numpy())
        value.const_value = ir.ExternalTensor(
            "held", 0, tensor.nbytes, tensor.dtype, shape=static_shape(tensor), name=name
        )
    return ir.to_proto(graph).SerializeToString(), weights
