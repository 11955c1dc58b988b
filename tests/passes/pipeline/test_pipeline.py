"""A pipeline's text, and the laws that run after each of its passes."""

from __future__ import annotations

import dataclasses

import numpy as np
import onnx_ir as ir
import pytest

from graftline.errors import LawBroken, PipelineSyntax
from graftline.evaluate import run
from graftline.passes import GRAFTS, Pipeline
from graftline.passes.grafts.tree_mask import TreeMask
from graftline.passes.laws import common as laws
from graftline.passes.laws.common import Memo, infer_shapes
from tests.passes.tiny_hosts import ALL, decoder_feed, grafted, host


def test_contradicting_shapes_break_a_law() -> None:
    model = host()
    value = next(n for n in model.graph if n.op_type == "MatMul").outputs[0]
    value.shape = ir.Shape(["B", "N", 7])
    with pytest.raises(LawBroken, match=r"'typed' at shape inference: .*MatMul"):
        infer_shapes(model)


def test_pipeline_text_and_parse_are_inverses() -> None:
    assert str(Pipeline.parse(ALL, GRAFTS)) == ALL
    assert str(Pipeline.parse("reduce-logits{topk=8}", GRAFTS)) == "reduce-logits"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("kv-cahe", "unknown pass 'kv-cahe'; did you mean 'kv-cache'?"),
        ("reduce-logits{top=3}", "reduce-logits has no option 'top'; did you mean 'topk'?"),
        ("reduce-logits{topk=many}", "'topk' takes a whole number"),
        ("reduce-logits{entropy=1}", "'entropy' takes true or false"),
        ("a b", "cannot read the pass 'a b'"),
    ],
)
def test_pipeline_errors_say_what_to_do(text: str, message: str) -> None:
    with pytest.raises(PipelineSyntax) as caught:
        Pipeline.parse(text, GRAFTS)
    assert message in str(caught.value)


@dataclasses.dataclass(frozen=True)
class LeakyMask(TreeMask):
    """Made wrong on purpose: its neutral mask lets every row see the one after it."""

    def neutral(self, feed, after):  # type: ignore[no-untyped-def]
        fed = super().neutral(feed, after)
        rows = feed["tokens"].shape[1]
        fed["mask"][:, :, np.arange(rows - 1), np.arange(1, rows)] = True
        return fed


def test_the_memo_prepares_a_graph_once_and_never_answers_for_what_it_was(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    prepared: list[ir.Model] = []
    real = laws.prepare
    monkeypatch.setattr(laws, "prepare", lambda model: (prepared.append(model), real(model))[1])
    memo, model, feeds = Memo(), host(), [decoder_feed(61, seed=seed) for seed in (0, 1)]
    was = [memo(model, feed)["logits"] for feed in feeds]
    assert prepared == [model]
    for feed, logits in zip(feeds, was, strict=True):
        np.testing.assert_array_equal(logits, run(model, feed)["logits"])
    copy = model.clone()
    memo.renamed(model, copy)
    weight = model.graph.initializers["layers.0.norm_a.weight"]
    assert weight.const_value is not None
    weight.const_value = ir.tensor(2 * weight.const_value.numpy(), name=weight.name)
    third = decoder_feed(61, seed=2)
    np.testing.assert_array_equal(memo(copy, third)["logits"], run(copy, third)["logits"])
    assert prepared == [model]
    changed = memo(model, feeds[0])["logits"]
    np.testing.assert_array_equal(changed, run(model, feeds[0])["logits"])
    assert not np.array_equal(changed, was[0])


def test_the_neutral_law_catches_a_wrong_graft() -> None:
    model = grafted("anchors | kv-cache")
    kept = Pipeline.parse("kv-cache", GRAFTS).grafts[0].neutral(decoder_feed(61), model)
    with pytest.raises(LawBroken, match="leaky-mask breaks the law 'neutral' at"):
        Pipeline((LeakyMask(),)).run(model, kept)


def test_the_interface_law_catches_a_forgotten_port() -> None:
    @dataclasses.dataclass(frozen=True)
    class Forgetful(TreeMask):
        def apply(self, model: ir.Model) -> None:
            ports = model.metadata_props["graftline.ports"]
            super().apply(model)
            model.metadata_props["graftline.ports"] = ports

    with pytest.raises(LawBroken, match=r"'interface' at inputs: ports differ at .*mask"):
        Pipeline((Forgetful(),)).run(grafted("anchors | kv-cache"))
