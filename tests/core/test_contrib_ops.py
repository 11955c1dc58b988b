"""Every contrib op, and the standard ops the oracle leans on, equal ONNX Runtime's CPU kernels."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from graftline.errors import CannotEvaluate
from graftline.evaluate import run
from tests.core.kernels import ATTENTION_TERMS, MS, agree, engine, model, noise, reference
from tests.rounding import assert_same_sums

X, SKIP, GAMMA, BETA, BIAS = noise(2, 3, 24), noise(2, 3, 24, seed=1), *noise(3, 24)


def test_norms():
    for bias in (None, BIAS):
        inputs = [X, SKIP, GAMMA, bias]
        ours = reference("SkipSimplifiedLayerNormalization", inputs, 4, epsilon=1e-5)
        theirs = engine("SkipSimplifiedLayerNormalization", inputs, 4, epsilon=1e-5)
        for i in (0, 2, 3):  # ONNX Runtime declares a mean and leaves it unset
            assert_same_sums(ours[i], theirs[i], terms=X.shape[-1])
    agree("SkipLayerNormalization", [X, SKIP, GAMMA, BETA, BIAS], 4, epsilon=1e-5)
    agree("SkipLayerNormalization", [X, SKIP[:1], GAMMA], 4)
    agree("SimplifiedLayerNormalization", [X, GAMMA], 2, domain="", epsilon=1e-6)
    agree("SimplifiedLayerNormalization", [X, noise(3, 24)], domain="", axis=1)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("depth", [64, 72, 45])
@pytest.mark.parametrize("zeros", ["packed", "none", "float"])
def test_matmul_nbits(bits: int, depth: int, zeros: str):
    count, block, random = 7, 16, np.random.default_rng(3)
    blocks = -(-depth // block)
    data = random.integers(0, 256, (count, blocks, block * bits // 8), dtype=np.uint8)
    width = -(-blocks * bits // 8)
    zero = {
        "packed": random.integers(0, 256, (count, width), dtype=np.uint8),
        "none": None,
        "float": noise(count, blocks) * 3 + 8,
    }[zeros]
    if zeros == "float" and bits == 8:
        pytest.skip("ONNX Runtime's CPU kernel refuses it")
    inputs = [noise(2, 3, depth), data, noise(count, blocks), zero, None, noise(count)]
    sizes = {"K": depth, "N": count, "bits": bits, "block_size": block}
    agree("MatMulNBits", inputs, terms=depth, **sizes)


@pytest.mark.parametrize("bits", [4, 8])
def test_matmul_nbits_at_accuracy_4_is_close_to_its_meaning(bits: int):
    """The kernel rounds activations to 8 bits: half a percent. Without any, another one ran."""
    random = np.random.default_rng(3)
    data = random.integers(0, 256, (24, 3, 32 * bits // 8), dtype=np.uint8)
    zeros = random.integers(0, 256, (24, -(-3 * bits // 8)), dtype=np.uint8)
    inputs = [noise(5, 96), data, noise(24, 3), zeros]
    sizes = {"K": 96, "N": 24, "bits": bits, "block_size": 32, "accuracy_level": 4}
    ours, theirs = (f("MatMulNBits", inputs, **sizes)[0] for f in (reference, engine))
    assert 1e-4 < np.linalg.norm(ours - theirs) / np.linalg.norm(ours) < 0.02


@pytest.mark.parametrize("bits", [4, 8])
def test_gather_block_quantized(bits: int):
    random = np.random.default_rng(3)
    data = random.integers(0, 256, (7, 64 * bits // 8), dtype=np.uint8)
    zeros = random.integers(0, 256, (7, 4 * bits // 8), dtype=np.uint8)
    ids = np.array([[1, 6, -1], [0, 9, 3]])
    options = {"bits": bits, "block_size": 16, "gather_axis": 0, "quantize_axis": 1}
    for zero in (zeros, None):
        agree("GatherBlockQuantized", [data, ids, noise(7, 4), zero], terms=2, **options)


@pytest.mark.parametrize("options", [{}, {"interleaved": 1}, {"num_heads": 6}], ids=str)
def test_the_contributed_rotary_embedding(options: dict[str, int]):
    tables = [noise(32, 8), noise(32, 8, seed=1)]
    at = np.array([[3, 1, 4, 1, 5], [9, 2, 6, 5, 3]])
    for where in (at, np.array([7])):
        agree("RotaryEmbedding", [noise(2, 6, 5, 16), where, *tables], domain=MS, **options)
        agree("RotaryEmbedding", [noise(2, 5, 96), where, *tables], domain=MS, **options)
    partial = {"rotary_embedding_dim": 16, "num_heads": 4}
    agree("RotaryEmbedding", [noise(2, 5, 96), at, *tables], domain=MS, **partial)


def test_an_operator_without_a_meaning_is_named():
    proto, feed = model("NGramRepeatBlock", [noise(2, 3)], 1, MS, {"ngram_size": 2})
    with pytest.raises(CannotEvaluate, match=r"com.microsoft.NGramRepeatBlock"):
        run(ir.from_proto(proto), feed)


def test_activations():
    agree("FastGelu", [X, BIAS])
    agree("QuickGelu", [X * 30], alpha=1.0)


def masks() -> dict[str, Any]:
    random = np.random.default_rng(3)
    boolean = random.random((2, 1, 5, 9)) < 0.5
    boolean[0, 0, 2] = False  # a row that sees nothing: zeros
    return {"none": None, "bool": boolean, "float": noise(2, 6, 5, 9)}


@pytest.mark.parametrize("mask", ["none", "bool", "float"])
@pytest.mark.parametrize("options", [{}, {"is_causal": 1}, {"softcap": 1.5, "scale": 0.3}])
def test_standard_attention(mask: str, options: dict[str, Any]):
    q, k, v = noise(2, 6, 5, 16), noise(2, 2, 9, 16), noise(2, 2, 9, 16, seed=1)
    options = {"domain": "", "terms": ATTENTION_TERMS, **options}
    agree("Attention", [q, k, v, masks()[mask]], **options)
    agree("Attention", [q, k, v, None, None, None, np.array([9, 6])], **options)


def test_standard_cache_rotary_and_norm():
    written = [noise(2, 3, 12, 8), noise(2, 3, 4, 8), np.array([2, 8])]
    agree("TensorScatter", written, terms=0, domain="")
    at = np.random.default_rng(0).integers(0, 40, (2, 5))
    for flag in (0, 1):
        for part, width in ((0, 8), (8, 4)):
            options = {"domain": "", "terms": 2, "interleaved": flag}
            options["rotary_embedding_dim"] = part
            tables = [noise(40, width), noise(40, width, seed=1)]
            agree("RotaryEmbedding", [noise(2, 6, 5, 16), *tables, at], **options)
            direct = [noise(2, 5, width), noise(2, 5, width, seed=1)]
            agree("RotaryEmbedding", [noise(2, 6, 5, 16), *direct], **options)
    agree("RMSNormalization", [X, GAMMA], domain="")
    agree("LayerNormalization", [X, GAMMA, BETA], domain="")
