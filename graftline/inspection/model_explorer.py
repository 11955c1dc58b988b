"""Graphs and node data for Google's Model Explorer (github.com/google-ai-edge/model-explorer).

A graph collection is {label, graphs}; a node has a namespace, "block 3", by which the viewer nests
it; node data is {graph: {name, results: {node: {value, bgColor}}}}, a file for each kind of data.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import onnx_ir as ir

from graftline.bundle.reader import Bundle
from graftline.errors import GraftlineError
from graftline.inspection.blocks import maker
from graftline.inspection.diff import attribute_text
from graftline.inspection.diff_text import HOST, operator
from graftline.inspection.net import SMALL
from graftline.inspection.opening import read_graph
from graftline.inspection.places import WHOLE, places
from graftline.inspection.tracks import shown_stages, way
from graftline.passes.pipeline.graft import ROLE
from graftline.ports import read_ports

Json = dict[str, Any]
COLOURS = (
    "#d9dce0", "#9dc1ff", "#f3b48c", "#86d9c9", "#d3aef0", "#ded26f", "#f5a3c4", "#a9d68b",
    "#b7b7f7", "#eaa3a3", "#8fd3e6",
)  # fmt: skip
"""Of the host's nodes, and of the passes' in turn."""
GRAPHS, PASSES, WEIGHTS = "graphs.json", "passes.json", "weight-bytes.json"


def write_collections(
    bundle: Bundle | None, path: Path, stage: str | None, folder: Path
) -> list[str]:
    """Write the graphs of a bundle (those on the way to `stage`, or to every stage), or one graph,
    into `folder`; the names of the files. Raises GraftlineError where it cannot be written."""
    if bundle is None:
        models = {path.name: read_graph(path)}
    else:
        manifest = bundle.manifest
        wanted = [stage] if stage else shown_stages(manifest)
        ways = (way(manifest, name, manifest.stages[name]) for name in wanted)
        names = dict.fromkeys(name for names in ways for name in names if name in manifest.stages)
        models = {name: read_graph(bundle.graph(name)) for name in names}
    label = path.name if bundle is None else bundle.manifest.name
    graphs = [_graph(name, model) for name, model in models.items()]
    told = {
        GRAPHS: {"label": label, "graphs": graphs},
        PASSES: {name: _passes(model) for name, model in models.items()},
        WEIGHTS: {name: _weights(model) for name, model in models.items()},
    }
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, data in told.items():
            (folder / name).write_text(json.dumps(data), encoding="utf-8")
    except OSError as error:
        raise GraftlineError(f"{folder} cannot be written ({error.strerror})") from error
    return list(told)


def _graph(name: str, model: ir.Model) -> Json:
    where = places(model)
    numbers = {node: str(i) for i, node in enumerate(model.graph)}
    nodes = [*_inputs(model), *(_node(node, where[node], numbers) for node in numbers)]
    return {"id": name, "nodes": [*nodes, *_outputs(model, numbers)]}


def _inputs(model: ir.Model) -> Iterator[Json]:
    known = {p.name: p for p in read_ports(model) if p.direction == "in"}
    for value in model.graph.inputs:
        port = known.get(value.name or "")
        pairs = [("role", port.role), ("owner", port.owner)] if port else []
        yield {
            "id": f"input {value.name}", "label": value.name or "", "namespace": "inputs",
            "attrs": _pairs(pairs), "incomingEdges": [], "outputsMetadata": [_made(0, value)],
        }  # fmt: skip


def _outputs(model: ir.Model, numbers: dict[ir.Node, str]) -> Iterator[Json]:
    for value in model.graph.outputs:
        yield {
            "id": f"output {value.name}", "label": value.name or "", "namespace": "outputs",
            "attrs": [], "incomingEdges": [*_edges([value], numbers)], "outputsMetadata": [],
        }  # fmt: skip


def _node(node: ir.Node, place: str, numbers: dict[ir.Node, str]) -> Json:
    role = node.metadata_props.get(ROLE)
    told = [
        ("name", node.name or ""),
        ("made by", maker(node)),
        *([("role", role)] if role else []),
    ]
    told += [(name, attribute_text(a)) for name, a in node.attributes.items()]
    told += [(f"weight {i}", _weight(v)) for i, v in enumerate(node.inputs) if _is_weight(v)]
    namespace = f"block {place}" if place.isdecimal() else "" if place == WHOLE else place
    return {
        "id": numbers[node],
        "label": operator(node),
        "namespace": namespace,
        "attrs": _pairs(told),
        "incomingEdges": [*_edges(node.inputs, numbers)],
        "outputsMetadata": [_made(i, v) for i, v in enumerate(node.outputs) if v.name],
    }


def _edges(values: Sequence[ir.Value | None], numbers: dict[ir.Node, str]) -> Iterator[Json]:
    for slot, value in enumerate(values):
        producer = None if value is None else value.producer()
        if value is not None and producer in numbers:
            source, output = numbers[producer], value.index() or 0
        elif value is not None and value.is_graph_input():
            source, output = f"input {value.name}", 0
        else:
            continue
        yield {
            "sourceNodeId": source, "sourceNodeOutputId": str(output),
            "targetNodeInputId": str(slot),
        }  # fmt: skip


def _made(output: int, value: ir.Value) -> Json:
    shape = "" if value.shape is None else f"[{', '.join(map(str, value.shape))}]"
    kind = "" if value.dtype is None else str(value.dtype).lower()
    pairs = [("__tensor_tag", value.name or ""), ("tensor_shape", f"{kind} {shape}".strip())]
    return {"id": str(output), "attrs": _pairs(pairs)}


def _passes(model: ir.Model) -> Json:
    """Which pass made each node: 0 the host, then the passes by their first node."""
    makers = dict.fromkeys([HOST, *(maker(node) for node in model.graph)])
    order = {name: i for i, name in enumerate(makers)}
    results = {
        str(i): {"value": order[maker(node)], "bgColor": COLOURS[order[maker(node)] % len(COLOURS)]}
        for i, node in enumerate(model.graph)
    }
    told = ", ".join(f"{number} {name}" for name, number in order.items())
    return {"name": f"made by ({told})", "results": results, "hideAggregatedStats": ["sum", "avg"]}


def _weights(model: ir.Model) -> Json:
    """What a step must read: bytes of the weights of each node that has any."""
    sizes = {str(i): sum(_bytes(v) for v in n.inputs) for i, n in enumerate(model.graph)}
    gradient = [{"stop": 0, "bgColor": "#ffffff"}, {"stop": 1, "bgColor": "#f3b48c"}]
    results = {node: {"value": size} for node, size in sizes.items() if size}
    return {"name": "bytes of weights", "results": results, "gradient": gradient}


def _bytes(value: ir.Value | None) -> int:
    tensor = None if value is None else value.const_value
    return 0 if tensor is None else tensor.nbytes


def _is_weight(value: ir.Value | None) -> bool:
    return _bytes(value) > SMALL


def _weight(value: ir.Value | None) -> str:
    tensor = None if value is None else value.const_value
    assert tensor is not None, "asked of weights only"
    sizes = " × ".join(map(str, tensor.shape))
    return f"{tensor.name}: {str(tensor.dtype).lower()} {sizes}, {tensor.nbytes:,} bytes"


def _pairs(told: Sequence[tuple[str, str]]) -> list[Json]:
    return [{"key": key, "value": value} for key, value in told]
