"""Every weight of a bundle is stored once, as the checkpoint has it where that will do."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest

from graftline.bundle.store import load_graph, save_graph, stored_bytes
from graftline.bundle.weight_file import WeightFile
from graftline.bundle.writer import BundleWriter
from graftline.errors import BundleError
from graftline.models.weights import WeightSource, read_headers
from graftline.tensors import Stacked, Widened
from tests.bundle.file_checkpoint import NAMES, write_safetensors

ROWS, COLUMNS = 24, 32


def numbers(seed: int, rows: int = ROWS) -> np.ndarray:
    """Numbers that bf16 and fp16 hold exactly."""
    whole = np.random.default_rng(seed).integers(-64, 64, (rows, COLUMNS))
    return whole.astype(np.float32) / 32


def checkpoint(tmp_path: Path, dtype: str = "BF16") -> WeightSource:
    file = tmp_path / f"{dtype}.safetensors"
    write_safetensors(file, {name: numbers(i) for i, name in enumerate("abc")}, dtype)
    return read_headers([file])


def wide(source: WeightSource, key: str, name: str = "") -> ir.TensorProtocol:
    return source.tensor(key, name or key, (ROWS, COLUMNS), ir.DataType.FLOAT)


def model_of(*weights: ir.TensorProtocol) -> ir.Model:
    """x [N, COLUMNS] times every weight, transposed, one after the other: their sum."""
    x = ir.Value(name="x", shape=ir.Shape(["N", COLUMNS]), type=ir.TensorType(ir.DataType.FLOAT))
    graph = ir.Graph([x], [], nodes=[], name="sum", opset_imports={"": 21})
    total: ir.Value | None = None
    for tensor in weights:
        value = ir.Value(
            name=tensor.name, shape=tensor.shape, type=ir.TensorType(tensor.dtype),
            const_value=tensor,
        )  # fmt: skip
        graph.register_initializer(value)
        turned = ir.node("Transpose", [value], {"perm": [1, 0]})
        product = ir.node("MatMul", [x, turned.outputs[0]])
        rows = ir.node("ReduceSum", [product.outputs[0]], {"keepdims": 1})
        graph.extend([turned, product, rows])
        total = rows.outputs[0] if total is None else _added(graph, total, rows.outputs[0])
    assert total is not None
    total.name, total.type = "y", ir.TensorType(ir.DataType.FLOAT)
    total.shape = ir.Shape([1, 1])
    graph.outputs.append(total)
    return ir.Model(graph, ir_version=10)


def _added(graph: ir.Graph, one: ir.Value, other: ir.Value) -> ir.Value:
    node = ir.node("Add", [one, other])
    graph.append(node)
    return node.outputs[0]


def engine_file(folder: Path) -> WeightFile:
    return WeightFile(folder, "engine.weights", lambda size: None)


def source_file(folder: Path, *known: WeightFile) -> WeightFile:
    return WeightFile(folder, "source/source.weights", lambda size: None, known, widens=True)


def run(path: Path) -> float:
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return float(session.run(None, {"x": np.ones((1, COLUMNS), np.float32)})[0].sum())


def test_equal_contents_are_one_content_whatever_their_names(tmp_path: Path) -> None:
    tensors = [ir.tensor(numbers(seed), name=name) for seed, name in ((0, "a"), (0, "b"), (1, "c"))]
    weights = engine_file(tmp_path)
    save_graph(model_of(*tensors), tmp_path / "one.onnx", weights, {})
    save_graph(model_of(*reversed(tensors)), tmp_path / "other.onnx", weights, {})
    assert weights.path.stat().st_size == 2 * numbers(0).nbytes
    assert run(tmp_path / "one.onnx") == run(tmp_path / "other.onnx") == sum(
        float(t.numpy().sum()) for t in tensors
    )  # fmt: skip


@pytest.mark.parametrize("dtype", ["BF16", "F16"])
def test_what_no_engine_reads_stays_as_the_checkpoint_has_it(tmp_path: Path, dtype: str) -> None:
    source = checkpoint(tmp_path, dtype)
    weights = source_file(tmp_path)
    before = model_of(wide(source, "a"), wide(source, "b"), wide(source, "a", "tied"))
    save_graph(before, tmp_path / "g.onnx", weights, {})
    assert weights.path.stat().st_size == 2 * numbers(0).nbytes // 2
    onnx.checker.check_model(str(tmp_path / "g.onnx"))
    assert run(tmp_path / "g.onnx") == numbers(0).sum() * 2 + numbers(1).sum()
    back = load_graph(tmp_path / "g.onnx")
    assert list(back.graph.initializers) == list(before.graph.initializers) == ["a", "b", "tied"]
    assert [n.op_type for n in back.graph] == [n.op_type for n in before.graph]
    for name, value in back.graph.initializers.items():
        tensor = value.const_value
        assert isinstance(tensor, Widened), name
        assert tensor.narrow.dtype == NAMES[dtype]
        assert np.array_equal(tensor.numpy(), before.graph.initializers[name].const_value.numpy())


def test_a_narrow_weight_that_is_small_alone_is_stored_wide(tmp_path: Path) -> None:
    """As 512 to 1,023 bytes of fp16 are: small as they lie, and not as fp32."""
    file, values = tmp_path / "few.safetensors", numbers(0, 12)
    write_safetensors(file, {"a": values}, "F16")
    source, weights = read_headers([file]), source_file(tmp_path)
    few = source.tensor("a", "a", values.shape, ir.DataType.FLOAT)
    assert stored_bytes([model_of(few)], weights) == {}
    save_graph(model_of(few), tmp_path / "g.onnx", weights, {})
    assert run(tmp_path / "g.onnx") == values.sum()
    held = load_graph(tmp_path / "g.onnx").graph.initializers["a"].const_value
    assert held is not None
    assert np.array_equal(held.numpy(), values)


def test_a_graph_that_is_saved_twice_is_the_same_text(tmp_path: Path) -> None:
    source = checkpoint(tmp_path)
    save_graph(model_of(wide(source, "a")), tmp_path / "g.onnx", source_file(tmp_path), {})
    again = source_file(tmp_path / "again")
    again.folder.mkdir()
    save_graph(load_graph(tmp_path / "g.onnx"), again.folder / "g.onnx", again, {})
    texts = [(folder / "g.onnx").read_bytes() for folder in (tmp_path, again.folder)]
    assert texts[0] == texts[1]


def test_a_linked_file_is_pointed_into_and_an_engines_copy_comes_first(tmp_path: Path) -> None:
    source = checkpoint(tmp_path)
    file = source.stored["a"].file
    (tmp_path / "source").mkdir()
    os.link(file, tmp_path / "source/0.safetensors")
    engine = engine_file(tmp_path)
    save_graph(model_of(wide(source, "a")), tmp_path / "engine.onnx", engine, {})
    kept = source_file(tmp_path, engine)
    export = model_of(wide(source, "a"), wide(source, "b"))
    assert stored_bytes([export], kept) == {file: numbers(0).nbytes // 2}, "of b alone"
    save_graph(export, tmp_path / "export.onnx", kept, {file: "source/0.safetensors"})
    assert not kept.path.exists()
    assert run(tmp_path / "export.onnx") == numbers(0).sum() + numbers(1).sum()
    places = {
        t.name: t.external_data[0].value
        for t in onnx.load(tmp_path / "export.onnx", load_external_data=False).graph.initializer
    }
    assert places == {"a": "engine.weights", "b.bfloat16": "source/0.safetensors"}


def test_parts_of_a_stack_are_read_from_the_stack(tmp_path: Path) -> None:
    source = checkpoint(tmp_path)
    engine = engine_file(tmp_path)
    parts = [wide(source, key) for key in "abc"]
    save_graph(model_of(Stacked(parts, "packed")), tmp_path / "engine.onnx", engine, {})
    kept = source_file(tmp_path, engine)
    save_graph(model_of(*parts), tmp_path / "export.onnx", kept, {})
    assert not kept.path.exists()
    expected = float(sum(numbers(i).sum() for i in range(3)))
    assert run(tmp_path / "engine.onnx") == run(tmp_path / "export.onnx") == expected
    for seed, value in enumerate(load_graph(tmp_path / "export.onnx").graph.initializers.values()):
        assert value.const_value is not None
        assert np.array_equal(value.const_value.numpy(), numbers(seed))


def test_a_cast_that_stands_for_nothing_stored_is_refused(tmp_path: Path) -> None:
    source = checkpoint(tmp_path)
    save_graph(model_of(wide(source, "a")), tmp_path / "g.onnx", source_file(tmp_path), {})
    proto = onnx.load(tmp_path / "g.onnx", load_external_data=False)
    cast = next(n for n in proto.graph.node if n.op_type == "Cast")
    cast.input[0] = "x"
    onnx.save(proto, tmp_path / "g.onnx")
    with pytest.raises(BundleError, match="stands for no stored tensor; do not trust it"):
        load_graph(tmp_path / "g.onnx")


def test_a_disk_that_fills_while_weights_are_written_leaves_nothing(tmp_path: Path) -> None:
    def fill() -> None:
        with BundleWriter(tmp_path / "big") as writer:
            writer.engine.path.symlink_to("/dev/full")
            writer.engine.add(ir.tensor(np.zeros(1 << 20, np.float32)))

    with pytest.raises(BundleError, match=r"cannot write .*big: the disk is full"):
        fill()
    assert os.listdir(tmp_path) == []


def test_a_disk_that_fills_while_a_graph_is_written_leaves_nothing(tmp_path: Path) -> None:
    def fill() -> None:
        with BundleWriter(tmp_path / "big") as writer:
            graph = writer.path("g.onnx")
            graph.symlink_to("/dev/full")
            save_graph(model_of(ir.tensor(numbers(0), name="a")), graph, writer.engine, {})

    with pytest.raises(BundleError, match=r"cannot write .*big: the disk is full"):
        fill()
    assert os.listdir(tmp_path) == []


def test_a_small_weight_of_a_linked_file_is_read_into_the_graph(tmp_path: Path) -> None:
    """Nobody has read it before the link: what is left in its file is too small to point at."""
    file = tmp_path / "weights.data"
    file.write_bytes(np.ones((2, COLUMNS), np.float32).tobytes())
    small = ir.ExternalTensor(
        file.name, 0, 8 * COLUMNS, ir.DataType.FLOAT, shape=ir.Shape([2, COLUMNS]), name="small",
        base_dir=tmp_path,
    )  # fmt: skip
    (tmp_path / "source").mkdir()
    os.link(file, tmp_path / "source/0.data")
    linked = {file: "source/0.data"}
    save_graph(model_of(small), tmp_path / "export.onnx", engine_file(tmp_path), linked)
    assert run(tmp_path / "export.onnx") == 2 * COLUMNS
