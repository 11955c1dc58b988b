"""The oracle: run a graph on the CPU with ONNX's own reference implementation, from seeded feeds.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import onnx.reference
import onnx_ir as ir

from graftline.bare import bare
from graftline.contrib_ops import CONTRIB_OPS
from graftline.errors import CannotEvaluate
from graftline.memory import free_memory
from graftline.tensors import numbers, origin

Array = npt.NDArray[Any]
Feed = dict[str, Array]
ORACLE_SHARE = 0.4
"""Most of the free memory that the weights of an evaluated host may take: passes copy some."""


Prepared = Callable[[Mapping[str, Array]], Feed]
"""prepared(feed): the outputs by name of one graph, as it was when it was prepared."""


def run(model: ir.Model, feed: Mapping[str, Array]) -> Feed:
    """Outputs by name of `model` under `feed`, computed by onnx.reference (numpy).

    Raises CannotEvaluate for an operator without a reference implementation.
    """
    return prepare(model)(feed)


def prepare(model: ir.Model) -> Prepared:
    """`model` as it is now, to be run on any number of feeds.

    Weights are handed over as they lie (mapped files are not copied into a protobuf). Raises
    CannotEvaluate for an operator without a reference implementation.
    """
    if unknown := _unknown(model):
        raise CannotEvaluate("the oracle knows no such operator", unknown)
    weights = weights_of(model)
    session = onnx.reference.ReferenceEvaluator(bare(model), new_ops=list(CONTRIB_OPS))
    names = [cast(str, v.name) for v in model.graph.inputs]
    outputs = cast(list[str], session.output_names)

    def prepared(feed: Mapping[str, Array]) -> Feed:
        given = {**{n: feed[n] for n in names if n in feed}, **weights}
        with np.errstate(divide="ignore"):  # the logarithm of no chance at all
            values = session.run(None, given)
        return {n: np.asarray(v) for n, v in zip(outputs, cast(list[Any], values), strict=True)}

    return prepared


_KNOWN = frozenset((op.op_domain, op.__name__) for op in CONTRIB_OPS)


def _unknown(model: ir.Model) -> list[str]:
    """Operators of other domains than ONNX's that are neither functions of the model nor ours."""
    own = {(name, op) for name, op, _ in model.functions}
    return [
        f"{node.domain}.{node.op_type} {node.name}" for node in model.graph.all_nodes()
        if node.domain not in ("", "ai.onnx")
        and (node.domain, node.op_type) not in _KNOWN | own
    ]  # fmt: skip


def weights_of(model: ir.Model) -> Feed:
    """The values of a graph's initializers by name: of those that are one tensor (an embedding and
    a tied head) the same array."""
    weights: Feed = {}
    read: dict[Hashable, Array] = {}
    for name, value in model.graph.initializers.items():
        assert value.const_value is not None
        key = origin(value.const_value)
        if key not in read:
            read[key] = numbers(value.const_value)
        weights[name] = read[key].reshape(value.const_value.shape.numpy())
    return weights


def oracle_limit() -> int:
    """Bytes of weights that the oracle can take on this machine, as it is now."""
    return int(free_memory() * ORACLE_SHARE)
