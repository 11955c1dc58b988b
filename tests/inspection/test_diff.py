"""The canonical diff: names and order say nothing, everything that computes is seen."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from graftline.errors import CheckpointError
from graftline.inspection.diff import Diff, compare
from graftline.inspection.diff_text import markdown, parts
from graftline.passes.graph.emit import Emit
from graftline.ports import read_ports, write_ports
from tests.commands.calling import call, refused
from tests.inspection.graphs import graph, renamed, shuffled
from tests.tiny_checkpoints import TINY

HOST = """
<ir_version: 10, opset_import: ["" : 24]>
host (float[2, 4] x, bool c) => (float[2, 4] y)
<float[4, 4] w = {1.0, 2.0, 3.0, 4.0, 1.0, 2.0, 3.0, 4.0, 1.0, 2.0, 3.0, 4.0, 1.0, 2.0, 3.0, 4.0}>
{
    a = MatMul (x, w)
    b = Relu (a)
    d = If (c) <
        then_branch = yes () => (float[2, 4] p) { p = Add (b, a) },
        else_branch = no () => (float[2, 4] q) { q = Sub (b, a) }
    >
    y = LeakyRelu <alpha = 0.5> (d)
}
"""


def found(before: str, after: str) -> Diff:
    return compare(graph(before), graph(after))


def test_names_and_order_are_no_difference() -> None:
    host = TINY.build()
    other = shuffled(renamed(host.clone()))
    assert [n.name for n in host.graph] != [n.name for n in other.graph]
    assert compare(host, other).equal
    assert compare(other, host).told == f"equal: {len(host.graph)} nodes"
    assert found(HOST, HOST.replace("d =", "e =").replace("(d)", "(e)").replace(" p", " r")).equal


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("alpha = 0.5", "alpha = 0.25", "~ LeakyRelu: alpha: 0.5 → 0.25"),
        ("Relu (a)", "Gelu (a)", "- Relu"),
        ("Add (b, a)", "Add (a, b)", "~ If"),
        ("Sub (b, a)", "Mul (b, a)", "~ If: else_branch: a graph of 1 nodes → a graph of 1 nodes"),
        ("{1.0, 2.0", "{9.0, 2.0", "~ MatMul: input 1"),
        ("a = MatMul (x, w)", "a = MatMul (w, w)", "~ MatMul: input 0"),
        ('"" : 24', '"" : 23', "~ operator set ai.onnx: 24 → 23"),
        ("bool c)", "bool c, float[1] z)", "~ input z: absent → z float [1]"),
        ("float[2, 4] y", "float[4, 2] y", "~ output y: y float [2, 4] → y float [4, 2]"),
        ("b = Relu (a)", "h = Neg (a) b = Relu (h)", "+ Neg"),
    ],
)
def test_each_difference_is_told(old: str, new: str, told: str) -> None:
    one = found(HOST, HOST.replace(old, new))
    assert not one.equal
    rows = [f"{row.sign} {row.text}" for part in parts(one) for row in part.rows]
    assert any(row.startswith(told) for row in rows), rows
    assert len(one.added) + len(one.removed) + len(one.changed) + len(one.graph) <= 3


def test_an_added_node_leaves_all_others_paired() -> None:
    before = TINY.build()
    after = shuffled(renamed(before.clone()))
    products = [n for n in after.graph if n.op_type == "MatMul"]
    third = products[2]
    emit = Emit(after.graph, "scale", at=third)
    read = third.inputs[0]
    third.replace_input_with(0, emit.op("Neg", [read]))
    one = compare(before, after)
    assert [n.op_type for n in one.added] == ["Neg"]
    assert one.removed == ()
    assert [c.after for c in one.changed] == [third]
    assert len(one.pairs) == len(before.graph)


def test_other_weights_of_one_product_are_seen() -> None:
    before, after = TINY.build(), TINY.build()
    name, value = next(
        (n, v) for n, v in after.graph.initializers.items() if "down" in n and "1" in n
    )
    assert value.const_value is not None
    numbers = value.const_value.numpy().copy()
    numbers.flat[7] += 1
    value.const_value = ir.tensor(numbers, name=name)
    one = compare(before, after)
    assert (one.added, one.removed) == ((), ())
    assert [line for c in one.changed for line in c.lines] == [
        f"input 0: other values of the weight float [{', '.join(map(str, numbers.shape))}]"
    ]


def test_blocks_that_differ_alike_are_one_part() -> None:
    before, after = TINY.build(), TINY.build()
    for model, scale in ((before, 0.5), (after, 0.25)):
        for number, node in enumerate(n for n in model.graph if n.op_type == "Attention"):
            node.attributes["scale"] = ir.AttrFloat32("scale", scale)
            node.metadata_props["graftline.block"] = str(number)
    (part,) = parts(compare(before, after))
    assert (part.title, part.places) == ("blocks 0–1", 2)
    assert [row.text for row in part.rows] == ["Attention: scale: 0.5 → 0.25"]


def test_ports_are_told_apart_by_role_where_they_have_one() -> None:
    before, after = TINY.build(), TINY.build()
    port = read_ports(before)[0]
    after.graph.inputs[0].name = "renamed"
    changed = [p.__class__(**{**vars(p), "name": "renamed"}) for p in read_ports(after)[:1]]
    write_ports(after, [*changed, *read_ports(after)[1:]])
    one = compare(before, after)
    assert (one.added, one.removed, one.changed) == ((), (), ())
    assert len(one.graph) == 1
    assert f"{port.name} int64" in one.graph[0]
    assert "→ renamed int64" in one.graph[0]


def test_markdown_runs_nothing(tmp_path: Path) -> None:
    one = found(HOST, HOST.replace("Relu (a)", "Gelu (a)"))
    text = markdown("<script>`x`", one)
    assert "<script>" not in text
    assert text.count("```") == 2
    assert "+ Gelu" in text


def saved(path: Path, text: str) -> Path:
    ir.save(graph(text), path)
    return path


def test_the_command_exits_as_diff_does(tmp_path: Path, tiny_bundle: Path) -> None:
    same = saved(tmp_path / "a.onnx", HOST), saved(tmp_path / "b.onnx", HOST)
    done = call("diff", *same)
    assert (done.exit_code, done.stdout) == (0, "a.onnx → b.onnx: equal: 4 nodes\n")
    other = saved(tmp_path / "c.onnx", HOST.replace("Relu (a)", "Gelu (a)"))
    assert call("diff", same[0], other).exit_code == 1
    told = json.loads(call("diff", same[0], other, "--json").stdout)
    assert not told["equal"]
    assert "```diff" in call("diff", same[0], other, "--markdown").stdout
    assert call("diff", tiny_bundle, tiny_bundle).exit_code == 0
    stages = tiny_bundle / "export.onnx", tiny_bundle / "canonical.onnx"
    done = call("diff", *stages)
    assert done.exit_code == 1
    assert "blocks 0–1  × 2" in done.stdout


def test_the_command_refuses_in_one_line(tmp_path: Path, tiny_bundle: Path) -> None:
    host = saved(tmp_path / "a.onnx", HOST)
    (tmp_path / "broken.onnx").write_bytes(b"no graph")
    assert "not an ONNX graph" in refused("diff", host, tmp_path / "broken.onnx")
    assert "no such file" in refused("diff", host, tmp_path / "none.onnx")
    assert "no such bundle" in refused("diff", tmp_path / "none", tiny_bundle)
    assert "is a graph and" in refused("diff", host, tiny_bundle)
    assert "--stage is for bundles" in refused("diff", host, host, "--stage", "export")
    assert "did you mean 'canonical'" in refused(
        "diff", tiny_bundle, tiny_bundle, "--stage", "canonica"
    )
    assert "give one of them" in refused("diff", host, host, "--json", "--markdown")


@pytest.mark.parametrize("spoil", [Path.unlink, lambda p: p.write_bytes(b"")])
def test_weights_that_cannot_be_read_are_an_error(
    tmp_path: Path, spoil: Callable[[Path], object]
) -> None:
    model = ir.Model(ir.Graph([], [], nodes=[], opset_imports={"": 24}), ir_version=10)
    emit = Emit(model.graph, "test")
    x = ir.Value(name="x", shape=ir.Shape([1, 64]), type=ir.TensorType(ir.DataType.FLOAT))
    model.graph.inputs.append(x)
    weight = emit.initializer("w", ir.tensor(np.ones((64, 64), np.float32), name="w"))
    model.graph.outputs.append(emit.op("MatMul", [x, weight], "y"))
    for name in ("a", "b"):
        ir.save(model, tmp_path / f"{name}.onnx", external_data=f"{name}.data")
    assert compare(*(ir.load(tmp_path / f"{n}.onnx") for n in "ab")).equal
    spoil(tmp_path / "b.data")
    with pytest.raises(CheckpointError, match=r"the weight w .*(is not there|cannot be read)"):
        compare(*(ir.load(tmp_path / f"{n}.onnx") for n in "ab"))
