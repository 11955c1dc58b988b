"""Graphs over one copy of the weights: a name alone does not make two weights the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import numpy_helper
from onnx.parser import parse_model

from graftline.runtimes.ort.weights import shared_graphs

TEXT = """
<ir_version: 10, opset_import: ["" : 21]>
one (float[1,64] x) => (float[1,64] y) { y = MatMul (x, w) }
"""


def graph(path: Path, seed: int, size: int) -> Any:
    """x times a matrix of that seed under the name w, in a file of its own."""
    model = parse_model(TEXT)
    matrix = np.random.default_rng(seed).normal(size=(64, 64)).astype(np.float32)
    model.graph.initializer.append(numpy_helper.from_array(matrix, "w"))
    onnx.save(
        model, path, save_as_external_data=True, location=f"{path.stem}.bin", size_threshold=size
    )
    return matrix


def test_weights_of_one_name_and_other_numbers_stay_apart(tmp_path: Path) -> None:
    for size in (0, 1 << 30):  # beside the graph, and in it
        folder = tmp_path / str(size)
        folder.mkdir()
        paths = {name: folder / f"{name}.onnx" for name in ("a", "b")}
        matrices = {
            name: graph(path, seed, size) for seed, (name, path) in enumerate(paths.items())
        }
        made = shared_graphs(folder, paths, f"here {size}")
        x = np.ones((1, 64), np.float32)
        for name, matrix in matrices.items():
            (y,) = onnxruntime.InferenceSession(
                str(made[name]), providers=["CPUExecutionProvider"]
            ).run(None, {"x": x})
            np.testing.assert_allclose(y, x @ matrix, rtol=0, atol=1e-4)
