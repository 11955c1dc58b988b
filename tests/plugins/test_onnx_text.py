"""Nested calls and named constants, as the statements that ONNX's parser reads."""

from __future__ import annotations

import onnx
import onnx.parser
import pytest

from graftline.plugins import PLUGINS
from graftline.plugins.onnx_text import CONSTANTS, written_out


def test_arguments_come_before_the_call_that_takes_them() -> None:
    text = """    seen = Less (slot, Unsqueeze (Max (lengths, zero), axis_1))
    best, at = TopK <axis = 1, largest = 1> (seen, Shape <start = 0, end = 1> (slot))"""
    assert written_out(text).split("\n") == [
        "zero = Constant <value = int64 {0}> ()",
        "axis_1 = Constant <value = int64[1] {1}> ()",
        "seen__1__0 = Max (lengths, zero)",
        "seen__1 = Unsqueeze (seen__1__0, axis_1)",
        "seen = Less (slot, seen__1)",
        "best__1 = Shape <start = 0, end = 1> (slot)",
        "best, at = TopK <axis = 1, largest = 1> (seen, best__1)",
    ]


def test_the_body_of_a_loop_is_written_out_in_its_place() -> None:
    text = """    last = Loop (rows, true, x) <body = step
        (int64 turn, bool go_on, float[N] held) => (bool goes_on, float[N] now)
    {
        goes_on = Identity (go_on)
        now = Add (held, Mul (held, one_f))
    }>"""
    header = '<opset_import: ["" : 24], domain: "test"> loop (rows, x) => (last)'
    function = onnx.parser.parse_function(f"{header} {{{written_out(text)}}}")
    assert [n.op_type for n in function.node] == ["Constant", "Constant", "Loop"]
    (body,) = (a.g for a in function.node[-1].attribute)
    assert [n.op_type for n in body.node] == ["Identity", "Mul", "Add"]
    assert list(body.node[-1].input) == ["held", body.node[1].output[0]]


@pytest.mark.parametrize("name", PLUGINS)
def test_no_value_is_made_twice(name: str) -> None:
    made = [value for node in _nodes(PLUGINS[name].function().node) for value in node.output]
    assert len(set(made)) == len(made), "a value has the name of a constant or of an argument"
    used = {value for node in _nodes(PLUGINS[name].function().node) for value in node.input}
    assert not (set(CONSTANTS) & set(made)) - used, "a constant that nothing reads"


def _nodes(nodes: object) -> list[onnx.NodeProto]:
    found: list[onnx.NodeProto] = []
    for node in nodes:  # type: ignore[attr-defined]
        found.append(node)
        for attribute in node.attribute:
            found += _nodes(attribute.g.node)
    return found
