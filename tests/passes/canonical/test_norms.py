"""Every spelling of a normalization becomes one node with its own epsilon, scale and order."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from graftline.errors import NotApplicable
from graftline.evaluate import run
from tests.passes.canonical.canonical_host import CANONICAL, canonical, ops, same_logits
from tests.passes.canonical.raw_decoder import (
    NORM,
    decoder,
    feed,
)  # fmt: skip

NORMS = {
    "x times x, and Div": NORM.replace("Pow(x, two)", "Mul(x, x)").replace(
        "over = Reciprocal(root)", ""
    ).replace("unit = Mul(x, over)", "unit = Div(x, root)"),
    "one over root": NORM.replace("Reciprocal(root)", "Div(one, root)"),
    "one plus scale": NORM.replace(
        "n = Mul(norm_scale, unit)", "s = Add(norm_scale, one)\nn = Mul(unit, s)"),
    "no scale": NORM.replace("n = Mul(norm_scale, unit)", "n = Identity(unit)"),
    "sum of squares over their count": NORM.replace("square = Pow(x, two)", "").replace(
        "mean = ReduceMean(square, last)",
        "sum = ReduceSumSquare(x, last)\ncount = Constant<value = float {8.0}>()\n"
        "mean = Div(sum, count)"),
}  # fmt: skip


@pytest.mark.parametrize("text", NORMS.values(), ids=NORMS.keys())
def test_root_mean_square_norms(text: str) -> None:
    raw, model = decoder(norm=text), canonical(decoder(norm=text))
    assert ops(model) == CANONICAL
    same_logits(raw, model, feed())


def test_layer_norm() -> None:
    text = """
    mean = ReduceMean(x, last)
    centred = Sub(x, mean)
    square = Pow(centred, two)
    variance = ReduceMean(square, last)
    safe = Add(variance, epsilon)
    root = Sqrt(safe)
    unit = Div(centred, root)
    scaled_unit = Mul(unit, norm_scale)
    n = Add(scaled_unit, norm_bias)
    """
    raw, model = decoder(norm=text), canonical(decoder(norm=text))
    assert ops(model)["LayerNormalization"] == 1
    assert ops(model)["ReduceMean"] == 0
    same_logits(raw, model, feed())


def test_root_mean_square_of_the_centred_is_layer_norm() -> None:
    text = """
    mean = ReduceMean(x, last)
    centred = Sub(x, mean)
    n = RMSNormalization<axis = -1, epsilon = 0.00001>(centred, norm_scale)
    """
    raw, model = decoder(norm=text), canonical(decoder(norm=text))
    assert ops(model)["LayerNormalization"] == 1
    assert ops(model)["ReduceMean"] == ops(model)["RMSNormalization"] == 0
    same_logits(raw, model, feed())


def norm_of(model: ir.Model) -> ir.Node:
    (node,) = [n for n in model.graph if n.op_type == "RMSNormalization"]
    return node


@pytest.mark.parametrize(
    ("text", "epsilon"),
    [("n = SimplifiedLayerNormalization(x, norm_scale)", 1e-5),
     ("none = Sub(x, x)\n    n = SkipSimplifiedLayerNormalization(x, none, norm_scale)", 1e-12)],
    ids=["plain", "skip"],
)  # fmt: skip
def test_fused_norms_without_an_epsilon_have_their_own(
    text: str, epsilon: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a stream so small that the epsilon decides."""
    from . import raw_decoder

    held = raw_decoder.weights()
    held["embed"] = held["embed"] * np.float32(1e-3)
    monkeypatch.setattr(raw_decoder, "weights", lambda: held)

    def made() -> ir.Model:
        model = decoder(norm=text)
        for node in model.graph:
            if node.op_type.startswith("Skip"):
                node.domain = "com.microsoft"
        model.graph.opset_imports["com.microsoft"] = 1
        return model

    model = canonical(made())
    assert norm_of(model).attributes.get_float("epsilon") == pytest.approx(epsilon)
    same_logits(made(), model, feed())


HALF = "half = Cast<to = 1>(norm_half)\n    "
HALF_NORMS = {
    "scale": NORM.replace("n = Mul(norm_scale, unit)", HALF + "n = Mul(half, unit)"),
    "one plus scale": NORM.replace(
        "n = Mul(norm_scale, unit)", HALF + "s = Add(half, one)\n    n = Mul(unit, s)"),
}  # fmt: skip


@pytest.mark.parametrize("text", HALF_NORMS.values(), ids=HALF_NORMS.keys())
def test_a_scale_stored_in_fp16_is_used_in_fp32(
    text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from . import raw_decoder

    held = raw_decoder.weights()
    held["norm_half"] = (held["norm_scale"] / 7).astype(np.float16)
    monkeypatch.setattr(raw_decoder, "weights", lambda: held)
    raw, model = decoder(norm=text), canonical(decoder(norm=text))
    scale = norm_of(model).inputs[1]
    assert scale is not None
    assert scale.dtype == ir.DataType.FLOAT
    before, after = run(raw, feed())["logits"], run(model, feed())["logits"]
    np.testing.assert_allclose(after, before, atol=4e-6 * np.abs(before).max())


def test_a_norm_over_tokens_is_refused() -> None:
    with pytest.raises(NotApplicable, match="mixes tokens; only the last axis"):
        canonical(decoder(norm="n = SimplifiedLayerNormalization<axis = 1>(x, norm_scale)"))
