"""What can be told without running a model: unknown, failing and defective are three things."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from graftline.errors import CannotEvaluate, DoesNotRun, GraftlineError, NotApplicable
from graftline.passes.canonical.lengths import constants_above, lengths_around, token_ids
from graftline.passes.canonical.mask.lines import line_of, steps_of
from graftline.passes.graph import meaning
from graftline.passes.graph.emit import Emit
from graftline.passes.graph.formula import Formula, copy_formula, formula_of
from graftline.passes.graph.meaning import World, evaluate_node


def value(name: str, array: object = None) -> ir.Value:
    held = None if array is None else ir.tensor(np.asarray(array), name=name)
    return ir.Value(name=name, const_value=held)


def test_an_unknown_operator_cannot_be_evaluated() -> None:
    node = ir.node("Mystery", [value("x")], domain="unknown", name="m")
    with pytest.raises(CannotEvaluate, match="Mystery m"):
        evaluate_node(node, [np.ones(2)], 24)
    assert not issubclass(CannotEvaluate, NotApplicable)
    assert issubclass(CannotEvaluate, GraftlineError)


def test_nodes_that_differ_in_anything_are_not_taken_for_one_another() -> None:
    x, y, axes = value("x"), value("y"), value("axes")
    table = np.arange(6.0).reshape(2, 3)

    def cast(to: ir.DataType) -> list[np.ndarray]:
        return evaluate_node(ir.node("Cast", [x], {"to": int(to)}), [table], 24)

    def total(inputs: list[ir.Value | None], keep: int, *arrays: object) -> list[np.ndarray]:
        node = ir.node("ReduceSum", inputs, {"keepdims": keep})
        return evaluate_node(node, [None if a is None else np.asarray(a) for a in arrays], 24)

    for _ in range(2):  # the second time by runners that are kept
        assert [cast(t)[0].dtype for t in (ir.DataType.INT64, ir.DataType.BOOL)] == [int, bool]
        assert total([x, axes], 0, table, [1])[0].tolist() == [3, 12]
        assert total([x, axes], 1, table, [1])[0].tolist() == [[3], [12]]
        assert total([x, None], 0, table, None)[0] == 15
        pieces = ir.node("Split", [x], {"axis": 1, "num_outputs": 3}, num_outputs=3)
        assert [p.tolist() for p in evaluate_node(pieces, [table], 24)] == [
            [[0], [3]], [[1], [4]], [[2], [5]]
        ]  # fmt: skip
        for held in (1.0, 2.0):
            node = ir.node("ConstantOfShape", [y], {"value": ir.tensor(np.asarray([held]))})
            assert evaluate_node(node, [np.asarray([2])], 24)[0].tolist() == [held] * 2
        clipped = ir.node("Clip", [x, None, y])
        assert evaluate_node(clipped, [table, None, np.asarray(1.0)], 24)[0].max() == 1


def test_a_runner_is_made_once_for_equal_nodes(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[str] = []
    real = meaning._made

    def counted(node: ir.Node, *rest: Any) -> Any:
        made.append(node.op_type)
        return real(node, *rest)

    monkeypatch.setattr(meaning, "_made", counted)
    monkeypatch.setattr(meaning, "_RUNNERS", {})
    for shift in range(3):
        node = ir.node("Mod", [value(f"a{shift}"), value("b")], {"fmod": 0}, name=f"n{shift}")
        assert evaluate_node(node, [np.asarray(7 + shift), np.asarray(4)], 24) == [(7 + shift) % 4]
    assert made == ["Mod"]


@pytest.mark.parametrize(
    ("op", "arrays"),
    [("Add", [np.ones(2), np.ones(3)]), ("Gather", [np.ones(2), np.asarray([7])]),
     ("Reshape", [np.ones(2), np.asarray([7])]),
     ("Where", [np.ones(2, bool), np.ones(3), np.ones(3)])],
)  # fmt: skip
def test_a_node_that_fails_on_its_own_values_does_not_run(
    op: str, arrays: list[np.ndarray]
) -> None:
    node = ir.node(op, [value(f"i{n}") for n in range(len(arrays))], name="n")
    with pytest.raises(DoesNotRun, match=f"does not run at these sizes.*{op} n"):
        evaluate_node(node, arrays, 24)


def test_a_defect_of_ours_is_no_property_of_the_host() -> None:
    """Too few arrays for a node is our fault, and stays the error it is."""
    node = ir.node("Add", [value("a"), value("b")], name="c")
    with pytest.raises(ValueError, match="shorter than"):
        evaluate_node(node, [np.ones(2)], 24)


def test_activations_and_large_weights_are_not_looked_at() -> None:
    def never() -> ir.TensorProtocol:
        raise AssertionError("a weight was read")

    huge = ir.LazyTensor(never, dtype=ir.DataType.FLOAT, shape=ir.Shape([1 << 14, 1 << 14]))
    for held, reason in ((None, "not known"), (huge, "too large to look at")):
        source = ir.Value(name="w", const_value=held)
        out = ir.node("Neg", [source]).outputs[0]
        with pytest.raises(CannotEvaluate, match=reason):
            World({}).value(out)


def test_lengths_lie_around_every_constant() -> None:
    table = value("table", np.zeros((7, 2), np.float32))
    index = ir.node("Min", [value("n"), value("clip", 40)]).outputs[0]
    read = ir.node("Gather", [table, index]).outputs[0]
    out = ir.node("Where", [value("c"), read, value("low", np.float32(-3e38))]).outputs[0]
    assert constants_above([out]) == {2, 7, 40}
    assert {39, 40, 41, 81, 6, 7, 8, 15} <= set(lengths_around({2, 7, 40}))
    assert constants_above([value("half", np.float16(-65504))]) == set()
    assert set(token_ids({9, 40}, 40, 4, 50, 0).ravel()) == {0, 1, 2, 9}


def test_lines_and_steps() -> None:
    positions = {n: (3 + 2 * np.arange(n) - n)[None] for n in (1, 5, 9)}
    line = line_of(positions, 0.0)
    assert line is not None
    assert (line.start[0], line.slope[0], line.change[0]) == (3, 2, -1)
    assert line_of({n: np.minimum(np.arange(n), 7)[None] for n in (5, 9)}, 0.0) is None
    distance = {n: np.arange(n)[:, None] - np.arange(n) for n in (5, 9)}
    steps = steps_of({n: ((d >= 0) & (d < 4))[None] for n, d in distance.items()})
    assert steps is not None
    assert [(at, bool(v[0])) for at, v in steps] == [(-8, False), (0, True), (4, False)]
    assert steps_of({n: (d * np.arange(n))[None] for n, d in distance.items()}) is None


def test_a_formula_is_copied_onto_other_positions() -> None:
    emit = Emit(ir.Graph([], [], nodes=[], name="g"), "test")
    query, key = value("query"), value("key")
    far = emit.op("Sub", [query, key])
    formula = Formula(emit.op("Less", [far, emit.const("mask.3", 3, np.int64)]), query, key)
    np.testing.assert_array_equal(
        formula.at(np.asarray([5, 0]), np.asarray([1, 3, 9])),
        [[[False, True, True], [True, True, True]]],
    )
    graph = ir.Graph([], [], nodes=[], name="h")
    other, positions = Emit(graph, "test"), value("positions")
    rows = other.op("Unsqueeze", [positions, other.const("q", [1, 3], np.int64)])
    slots = other.op("Unsqueeze", [positions, other.const("k", [1, 2], np.int64)])
    again = formula_of(copy_formula(formula, other, rows, slots))
    assert (again.query, again.key) == (rows, slots)
    assert again.text() == formula.text()
