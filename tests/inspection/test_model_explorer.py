"""What is written for Model Explorer: all nodes and edges, nested by block, coloured by pass."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import onnx_ir as ir

from tests.commands.calling import call, refused


def read(folder: Path, name: str) -> Any:
    return json.loads((folder / name).read_text(encoding="utf-8"))


def test_graphs_and_node_data(tiny_bundle: Path, tmp_path: Path) -> None:
    done = call("inspect", tiny_bundle, "--model-explorer", tmp_path / "me", "--stage", "ort-cpu")
    assert done.exit_code == 0, done.output
    found = read(tmp_path / "me", "graphs.json")
    assert found["label"] == "tiny.graft"
    graphs = {graph["id"]: graph["nodes"] for graph in found["graphs"]}
    assert list(graphs) == ["export", "canonical", "ort-cpu"]
    for name, nodes in graphs.items():
        model = ir.load(tiny_bundle / f"{name}.onnx")
        ends = len(model.graph.inputs) + len(model.graph.outputs)
        assert len(nodes) == len(model.graph) + ends
        ids = {node["id"] for node in nodes}
        edges = [edge for node in nodes for edge in node["incomingEdges"]]
        assert len(ids) == len(nodes)
        assert {edge["sourceNodeId"] for edge in edges} <= ids
        read_values = [
            v
            for n in model.graph
            for v in n.inputs
            if v is not None and (v.producer() or v.is_graph_input())
        ]
        assert len(edges) == len(read_values) + len(model.graph.outputs)
    attention = [n for n in graphs["canonical"] if n["label"] == "Attention"]
    assert [n["namespace"] for n in attention] == ["block 0", "block 1"]
    told = {pair["key"]: pair["value"] for pair in attention[0]["attrs"]}
    assert told["made by"] in ("host", "canonicalize")
    assert told["role"] == "attention"
    made = read(tmp_path / "me", "passes.json")["canonical"]
    assert "kv-cache" in made["name"]
    scatters = [n["id"] for n in graphs["canonical"] if n["label"] == "TensorScatter"]
    assert len({made["results"][i]["bgColor"] for i in scatters}) == 1
    sizes = read(tmp_path / "me", "weight-bytes.json")["ort-cpu"]["results"]
    assert sum(row["value"] for row in sizes.values()) > 10_000


def test_one_graph_and_a_folder_that_cannot_be(tiny_bundle: Path, tmp_path: Path) -> None:
    graph = tiny_bundle / "canonical.onnx"
    assert call("inspect", graph, "--model-explorer", tmp_path / "me").exit_code == 0
    assert [g["id"] for g in read(tmp_path / "me", "graphs.json")["graphs"]] == ["canonical.onnx"]
    (tmp_path / "file").write_text("")
    told = refused("inspect", graph, "--model-explorer", tmp_path / "file")
    assert "cannot be written" in told
