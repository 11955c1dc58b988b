"""next-feature: what a head foretells is its last MLP's with another end, and costs one product."""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx_ir as ir
import pytest

from graftline.errors import LawBroken, NotApplicable
from graftline.evaluate import run
from graftline.head_notes import NEXT_DOWN
from graftline.models.decoder import TinyDecoder
from graftline.passes import GRAFTS, Pipeline
from graftline.passes.anchors.anchors import block_outputs
from graftline.passes.grafts.head_parts import HEADS
from graftline.passes.grafts.next_feature import NAME, NextFeature
from graftline.passes.graph.emit import Emit
from graftline.passes.graph.ports import output_of
from graftline.passes.graph.weights import matrix
from graftline.ports import read_ports, state_port
from tests.passes.tiny_hosts import decoder_feed, host

SPEC = TinyDecoder(layers=1)
WIDTH = SPEC.mlp


def anchored(down: np.ndarray | None) -> ir.Model:
    """A host that carries a head with that matrix [H, I]."""
    model = host(SPEC)
    Pipeline.parse("anchors", GRAFTS).run(model)
    head = ir.Model(ir.Graph([], [], nodes=[], opset_imports={"": 24}), ir_version=11)
    if down is not None:
        Emit(head.graph, "head").initializer(NEXT_DOWN, ir.tensor(down, name=NEXT_DOWN))
        model.meta[HEADS] = head
    return model


def seeded() -> np.ndarray:
    shape = (SPEC.hidden, WIDTH)
    return np.random.default_rng(3).standard_normal(shape).astype(np.float32)


def grafted(down: np.ndarray) -> tuple[ir.Model, list[str]]:
    model = anchored(down)
    feed = decoder_feed(SPEC.vocabulary)
    (report,) = Pipeline.parse("next-feature", GRAFTS).run(model, feed)
    return model, [row.law for row in report.laws]


def test_before_and_after() -> None:
    before, (after, laws) = anchored(seeded()), grafted(seeded())
    added = Counter(n.op_type for n in after.graph) - Counter(n.op_type for n in before.graph)
    assert added == {"MatMul": 1, "Transpose": 1, "Add": 1}, "the MLP before it runs once"
    assert "foretold" in laws
    port = state_port(read_ports(after), normed=True)
    assert (port.name, port.role, port.shape) == (NAME, "features", ("B", "N", SPEC.hidden))


def test_with_the_mlps_own_matrix_it_is_what_leaves_the_block() -> None:
    node = block_outputs(anchored(seeded()).graph)[-1].producer()
    assert node is not None
    makers = [value.producer() for value in node.inputs if value is not None]
    (product,) = [maker for maker in makers if maker is not None and maker.op_type == "MatMul"]
    own = matrix(product.inputs[1])
    assert own is not None
    after, _ = grafted(own.rows())
    feed = decoder_feed(SPEC.vocabulary)
    Pipeline.parse("tap{layers=-1}", GRAFTS).run(after, feed)
    got = run(after, feed)
    np.testing.assert_allclose(got[NAME], got["hidden.0"], rtol=0, atol=1e-5)
    plain = anchored(seeded())
    logits = output_of(plain, "logits")
    assert logits is not None
    np.testing.assert_array_equal(got["logits"], run(plain, feed)["logits"])


def test_the_scored_end_in_its_place_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    real = NextFeature.apply

    def spoiled(graft: NextFeature, model: ir.Model) -> None:
        real(graft, model)
        value = next(v for v in model.graph.outputs if v.name == NAME)
        node = value.producer()
        assert node is not None
        node.replace_input_with(0, block_outputs(model.graph)[-1])

    monkeypatch.setattr(NextFeature, "apply", spoiled)
    with pytest.raises(LawBroken, match="'foretold'"):
        grafted(seeded())


def test_a_head_without_such_a_matrix_is_refused() -> None:
    with pytest.raises(NotApplicable, match=r"FSPAD's\); give it: --head PATH, or use tap\{layer"):
        Pipeline.parse("next-feature", GRAFTS).run(anchored(None))
    after, _ = grafted(seeded())
    with pytest.raises(NotApplicable, match="has its next feature already"):
        Pipeline.parse("next-feature", GRAFTS).run(after)
