"""Graphs in folders as people have them: which form is read, and where its tokenizer lies."""

from __future__ import annotations

import shutil
from pathlib import Path

import onnx
import onnx.parser
import pytest

from graftline.errors import CheckpointError
from graftline.models import open_checkpoint

TEXT = """
<ir_version: 10, opset_import: ["" : 17]>
g (int64[B,N] ids) => (float[B,N,3] y)
<float[3,4] table = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 1, 2}, float[4] scale = {1, 1, 1, 1},
 float[4,3] head = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 1, 2}> {
    x = Gather(table, ids)
    n = SimplifiedLayerNormalization<axis = -1>(x, scale)
    y = MatMul(n, head)
}
"""


@pytest.fixture
def graph(tmp_path: Path) -> Path:
    """onnx/model.onnx, with config.json and tokenizer.json one level up."""
    file = tmp_path / "onnx" / "model.onnx"
    file.parent.mkdir()
    onnx.save(onnx.parser.parse_model(TEXT), file)
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "tokenizer.json").write_text("{}")
    return file


def test_runtime_s_norm_in_the_standard_domain_is_accepted(graph: Path) -> None:
    facts = open_checkpoint(graph).host().facts
    assert (facts.vocabulary, facts.hidden, facts.dtype) == (0, 0, "float32")
    assert (facts.heads, facts.layers, facts.positions) == (0, 0, 0)


def test_the_tokenizer_of_a_graph_folder_lies_one_level_up(graph: Path) -> None:
    assert open_checkpoint(graph).host().tokenizer_files == [graph.parents[1] / "tokenizer.json"]
    (graph.parents[1] / "config.json").unlink()
    assert open_checkpoint(graph).host().tokenizer_files == []


def test_a_folder_with_a_graph_alone_reads_the_graph(graph: Path) -> None:
    said: list[str] = []
    host = open_checkpoint(graph.parents[1]).host(watch=said.append)
    assert said[0] == "using onnx/model.onnx"
    assert host.facts.source == "model.onnx"
    shutil.copyfile(graph, graph.with_name("second.onnx"))
    with pytest.raises(CheckpointError, match=r"several graphs \(onnx/model.onnx, onnx/second"):
        open_checkpoint(graph.parents[1])


def test_a_folder_with_weights_and_a_graph_says_which_is_used(graph: Path) -> None:
    (graph.parents[1] / "model.safetensors").write_bytes(b"")
    said: list[str] = []
    with pytest.raises(CheckpointError):
        open_checkpoint(graph.parents[1]).host(watch=said.append)
    expected = f"using model.safetensors with config.json; for the graph give {graph}"
    assert said[0] == expected
