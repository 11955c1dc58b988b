"""Graphs over one copy of the weights: a name alone does not make two weights the same."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
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


STATUS = Path("/proc/self/status")
PRODUCTS, WIDE = 12, 1024
OPENS = """
import sys
from pathlib import Path
from graftline.runtimes.ort.graph import open_graph

def taken():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon")) >> 10

before = taken()
session = open_graph(Path(sys.argv[1]), 1)
print(taken() - before)
"""


def products(branches: bool) -> onnx.ModelProto:
    """Products one after the other, by matrices of 4 MiB; or each in a branch of an If."""
    size, lines = f"float[1,{WIDE}]", list[str]()
    for i in range(PRODUCTS):
        product = f"MatMul (x{i}, w{i})"
        computed = f"computed{i} () => ({size} y{i}) {{ y{i} = {product} }}"
        passed = f"passed{i} () => ({size} z{i}) {{ z{i} = Identity (x{i}) }}"
        branch = f"If (c) <then_branch = {computed}, else_branch = {passed}>"
        lines.append(f"x{i + 1} = {branch if branches else product}")
    head = f'<ir_version: 10, opset_import: ["" : 21]> many ({size} x0, bool c)'
    return parse_model(f"{head} => ({size} x{PRODUCTS}) {{ {' '.join(lines)} }}")


@pytest.mark.skipif(not STATUS.is_file(), reason="only Linux says how much memory is anonymous")
def test_what_is_mapped_is_not_held_besides(tmp_path: Path) -> None:
    """48 MiB of matrices in branches: ONNX Runtime packs them, and then takes those of the file."""
    paths = {name: tmp_path / f"{name}.onnx" for name in ("main", "branches")}
    main, branches = products(False), products(True)
    for i in range(PRODUCTS):
        matrix = np.random.default_rng(i).normal(size=(WIDE, WIDE)).astype(np.float32)
        main.graph.initializer.append(numpy_helper.from_array(matrix, f"w{i}"))
    onnx.save(main, paths["main"], save_as_external_data=True, location="all.bin")
    kept = onnx.load(paths["main"], load_external_data=False)
    branches.graph.initializer.extend(kept.graph.initializer)
    onnx.save(branches, paths["branches"])
    graphs = shared_graphs(tmp_path, paths, "here")
    asked = [sys.executable, "-c", OPENS, str(graphs["branches"])]
    done = subprocess.run(asked, capture_output=True, text=True, check=True)
    assert int(done.stdout) < 16
