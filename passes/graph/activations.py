"""The activations of a graph, one after another, without holding the model or the run in memory."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import onnx
import onnx.reference
import onnx_ir as ir

from graftline.contrib_ops import CONTRIB_OPS
from graftline.passes.graph.weights import tensor_of
from graftline.tensors import numbers

Array = npt.NDArray[Any]


def activations(
    model: ir.Model, feed: Mapping[str, Array], wanted: Sequence[str]
) -> Iterator[tuple[str, Array]]:
    """Every value of `wanted` with its numbers under `feed`, in the order in which they are made.

    The oracle runs the graph from one wanted value to the next: the weights of that stretch are
    read, and what nobody reads any more is dropped, so memory is that of a stretch, and nothing
    behind the last wanted value is computed.
    """
    stretches = _stretches(model, wanted)
    reads = [_reads(nodes) for nodes in stretches]
    live: dict[str, Array] = dict(feed)
    yield from ((name, live[name]) for name in wanted if name in live)
    for place, nodes in enumerate(stretches):
        later = set(wanted).union(*reads[place + 1 :])
        made = [name for node in nodes for name in node.output if name in later]
        inputs = {name: live[name] for name in reads[place] if name in live}
        weights = model.graph.initializers
        inputs |= {n: numbers(tensor_of(weights[n])) for n in reads[place] if n in weights}
        live |= dict(zip(made, _run(model, nodes, inputs, made), strict=True))
        yield from ((name, live[name]) for name in made if name in wanted)
        ahead = set[str]().union(*reads[place + 1 :])
        live = {name: array for name, array in live.items() if name in ahead}


def _stretches(model: ir.Model, wanted: Sequence[str]) -> list[list[onnx.NodeProto]]:
    """The nodes in order, cut behind each that makes a wanted value, without those after the last.
    """
    found: list[list[onnx.NodeProto]] = [[]]
    left = set(wanted) - {v.name for v in model.graph.inputs}
    for node in model.graph:
        if not left:
            break
        found[-1].append(ir.to_proto(node))
        if made := left & {v.name for v in node.outputs}:
            left -= made
            found.append([])
    if left:
        raise ValueError(f"no node makes {', '.join(sorted(map(str, left)))}")
    return [nodes for nodes in found if nodes]


def _reads(nodes: Sequence[onnx.NodeProto]) -> set[str]:
    """Names that nodes read from outside, the nodes of their sub-graphs included."""
    made: set[str] = set()
    found: set[str] = set()
    for node in nodes:
        own = set(node.input)
        for attribute in node.attribute:
            graphs = [attribute.g] if attribute.HasField("g") else list(attribute.graphs)
            for graph in graphs:
                inner = {v.name for v in graph.input} | {t.name for t in graph.initializer}
                outputs = {v.name for v in graph.output}
                outputs -= {name for one in graph.node for name in one.output}
                own |= (_reads(list(graph.node)) | outputs) - inner
        found |= own - made
        made |= set(node.output)
    return found - {""}


def _run(
    model: ir.Model, nodes: Sequence[onnx.NodeProto], inputs: dict[str, Array], outputs: list[str]
) -> list[Array]:
    """What a few nodes compute."""
    helper = onnx.helper
    kinds = {n: helper.np_dtype_to_tensor_dtype(a.dtype) for n, a in inputs.items()}
    graph = helper.make_graph(
        list(nodes),
        "stretch",
        [helper.make_tensor_value_info(name, kind, None) for name, kind in kinds.items()],
        [onnx.ValueInfoProto(name=name) for name in outputs],
    )
    opsets = [helper.make_opsetid(domain, v) for domain, v in model.opset_imports.items()]
    functions = [ir.to_proto(function) for function in model.functions.values()]
    proto = helper.make_model(graph, opset_imports=opsets, functions=functions)
    session = onnx.reference.ReferenceEvaluator(proto, new_ops=list(CONTRIB_OPS))
    return [np.asarray(v) for v in cast(list[Any], session.run(None, inputs))]
