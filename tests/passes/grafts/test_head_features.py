"""head-features: what a head reads of its target, by its own words."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from graftline.errors import LawBroken, NotApplicable
from graftline.evaluate import Feed, run
from graftline.head_notes import NORM, TAPPED, TapReading
from graftline.models.decoder import TinyDecoder
from graftline.passes import GRAFTS, Pipeline
from graftline.passes.anchors.anchors import block_outputs, with_role
from graftline.passes.grafts.head_features import HeadFeatures
from graftline.passes.grafts.head_parts import HEADS
from graftline.passes.graph.emit import Emit, new_output
from graftline.ports import FEATURES
from tests.passes.tiny_hosts import host

HIDDEN, VOCABULARY = 32, 61
SPEC = TinyDecoder(hidden=HIDDEN, vocabulary=VOCABULARY, layers=3)
FEATURE = "head-features"


def target(reading: TapReading, weights: Feed) -> ir.Model:
    """An anchored host that carries a head with that reading and these initializers."""
    model = host(SPEC)
    Pipeline.parse("anchors", GRAFTS).run(model)
    head = ir.Model(ir.Graph([], [], nodes=[], opset_imports={"": 24}), ir_version=11)
    emit = Emit(head.graph, "head")
    for name, array in weights.items():
        emit.initializer(TAPPED + name, ir.tensor(array, name=TAPPED + name))
    reading.write(head)
    model.meta[HEADS] = head
    return model


def feed() -> Feed:
    tokens = np.random.default_rng(0).integers(0, VOCABULARY, (2, 5))
    return {"tokens": tokens, "positions": np.tile(np.arange(5), (2, 1))}


def states(model: ir.Model, values: list[ir.Value]) -> list[np.ndarray]:
    """What the host has at these values."""
    names = [f"shown.{n}" for n in range(len(values))]
    for value, name in zip(values, names, strict=True):
        shown = Emit(model.graph, "test").op("Identity", [value])
        new_output(model.graph, shown, name, ir.DataType.FLOAT, ["B", "N", HIDDEN])
    got = run(model, feed())
    return [got[name] for name in names]


def test_the_final_norm_stands_among_the_layers() -> None:
    random = np.random.default_rng(1)
    fc = random.standard_normal((HIDDEN, 2 * HIDDEN)).astype(np.float32)
    model = target(TapReading((NORM, 1), HIDDEN, 1e-6), {"fc": fc})
    norm = with_role(model.graph, "final_norm")[-1].outputs[0]
    reports = Pipeline.parse(FEATURE, GRAFTS).run(model, feed())
    assert "features-formula" in {row.law for row in reports[0].laws}
    shown = states(model, [norm, block_outputs(model.graph)[1]])
    wanted = np.concatenate(shown, axis=-1).astype(np.float64) @ fc.T
    np.testing.assert_allclose(run(model, feed())[FEATURES], wanted, rtol=0, atol=1e-4)


def test_a_head_without_a_product_reads_a_state_as_it_is() -> None:
    model = target(TapReading((1,), HIDDEN, 0.0), {})
    Pipeline.parse(FEATURE, GRAFTS).run(model, feed())
    (shown,) = states(model, [block_outputs(model.graph)[1]])
    np.testing.assert_array_equal(run(model, feed())[FEATURES], shown)


def test_another_state_than_the_final_norms_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(HeadFeatures, "blocks_of", lambda *_: [2])
    model = target(TapReading((NORM,), HIDDEN, 0.0), {})
    with pytest.raises(LawBroken, match="'layers'"):
        Pipeline.parse(FEATURE, GRAFTS).run(model)


def test_a_head_that_names_no_states_is_refused() -> None:
    model = host(SPEC)
    Pipeline.parse("anchors", GRAFTS).run(model)
    with pytest.raises(NotApplicable, match="needs a head that reads hidden states of certain"):
        Pipeline.parse(FEATURE, GRAFTS).run(model)
