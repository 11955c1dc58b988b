"""reduce-classes: the best class of each place in the graph, the first of equals."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from graftline.errors import LawBroken, NotApplicable
from graftline.evaluate import run
from graftline.passes import GRAFTS, Pipeline
from graftline.passes.grafts.reduce_classes import ReduceClasses
from graftline.passes.laws.classes import best_classes, first_largest, nearest_to_best
from graftline.passes.laws.compare import Comparison
from graftline.ports import read_ports
from tests.kinds.query_decoders import ALONE, PIXELS, PROTOOCC
from tests.kinds.recognisers import CPPD
from tests.kinds.samplers import lines
from tests.kinds.test_recogniser import canonical as recogniser
from tests.passes.grafts.test_fold_stored import canonical

NEAR = Comparison("an engine", "whole")


def test_before_and_after() -> None:
    before, feed = canonical(PROTOOCC)
    after = before.clone()
    passes = "prune-branch{outputs=auxiliary.2} | reduce-classes"
    reports = Pipeline.parse(passes, GRAFTS).run(after, feed)
    assert {row.law: row.status for row in reports[1].laws}["neutral"] == "held"
    assert {row.law: row.status for row in reports[1].laws}["first-largest"] == "held"
    added = [line for line in lines(after) if line not in lines(before)]
    assert added[-2].endswith("= ArgMax(classes.scores)")
    assert added[-1].startswith("classes = Cast(")
    ports = {p.name: (p.dtype, p.shape) for p in read_ports(after) if p.direction == "out"}
    assert list(ports) == ["classes", "auxiliary.0", "auxiliary.1"], "in the scores' place"
    assert [v.name for v in after.graph.outputs] == list(ports)
    assert ports["classes"] == ("uint8", ("B", "X", "Y", "Z"))
    got, scores = run(after, feed)["classes"], run(before, feed)["scores"]
    assert scores.nbytes == 4 * 5 * got.nbytes, "a fifth of the numbers, of a byte each"
    np.testing.assert_array_equal(got, scores.argmax(1))
    assert len(np.unique(got)) > 1


def test_many_classes_are_numbered_by_more_bits() -> None:
    text = PIXELS.replace("float[B,4,3]", "float[B,300,3]").replace("float[B,4,H", "float[B,300,H")
    model, feed = canonical(text)
    Pipeline.parse("reduce-classes", GRAFTS).run(model, feed)
    made = run(model, feed)["classes"]
    assert made.dtype == np.int32
    assert made.max() > 255
    model, _ = canonical(text)
    with pytest.raises(NotApplicable, match="uint8 numbers 256 classes, and the host has 300"):
        Pipeline.parse("reduce-classes{dtype=uint8}", GRAFTS).run(model)


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(NotApplicable, match="unknown dtype 'int8'; did you mean 'uint8'"):
        Pipeline.parse("reduce-classes{dtype=int8}", GRAFTS).run(canonical(ALONE)[0])
    with pytest.raises(NotApplicable, match="the scores are already reduced"):
        Pipeline.parse("reduce-classes | reduce-classes", GRAFTS).run(canonical(ALONE)[0])
    with pytest.raises(NotApplicable, match="a recogniser has no scores of places"):
        Pipeline.parse("reduce-classes", GRAFTS).run(recogniser(CPPD))


def test_the_law_sees_the_last_of_equals() -> None:
    before, feed = canonical(ALONE)
    after = before.clone()
    ReduceClasses().apply(after)
    assert first_largest(ReduceClasses(), before, after, feed, lambda model, fed: run(model, fed))
    node = next(n for n in after.graph if n.op_type == "ArgMax")
    node.attributes["select_last_index"] = ir.AttrInt64("select_last_index", 1)
    with pytest.raises(LawBroken, match=r"'first-largest' at 'classes': .* places are not"):
        first_largest(ReduceClasses(), before, after, feed, lambda model, fed: run(model, fed))


def test_another_class_must_be_as_near_as_rounding() -> None:
    scores = np.asarray([[[1.0, 5.0], [1.0 - 1e-6, 3.0], [0.5, 4.0]]], np.float32)
    best = best_classes(scores)
    assert best.tolist() == [[0, 0]]
    assert nearest_to_best(NEAR, "classes", best, scores) == 0
    assert 0 < nearest_to_best(NEAR, "classes", np.asarray([[1, 0]]), scores) < 2e-6
    with pytest.raises(LawBroken, match=r"1 of 2 places have another class, up to 0\.2 below"):
        nearest_to_best(NEAR, "classes", np.asarray([[1, 2]]), scores)
    with pytest.raises(LawBroken, match="classes 0 to 3 of 3"):
        nearest_to_best(NEAR, "classes", np.asarray([[3, 0]]), scores)
    with pytest.raises(LawBroken, match="scores that are not finite"):
        nearest_to_best(NEAR, "classes", best, scores * np.float32(np.inf))


def test_small_scores_are_no_near_ties() -> None:
    """A place whose scores are all small beside others' is still judged by its own."""
    scores = np.asarray([[[100.0, 2.0], [0.0, 1.99]]], np.float32)
    with pytest.raises(LawBroken, match=r"1 of 2 places have another class, up to 0\.005"):
        nearest_to_best(NEAR, "classes", np.asarray([[0, 1]]), scores)
