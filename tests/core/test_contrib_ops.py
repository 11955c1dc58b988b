"""Every contrib op, and the standard ops the oracle leans on, equal ONNX Runtime's CPU kernels."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from onnx import helper
from onnx.reference import ReferenceEvaluator

from graftline.contrib_ops import CONTRIB_OPS
from graftline.errors import CannotEvaluate
from graftline.evaluate import run
from graftline.tree import Tree
from tests.rounding import assert_same_sums

MS = "com.microsoft"


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng([seed, *shape]).standard_normal(shape).astype(np.float32)


def model(op: str, inputs: list[Any], outputs: int, domain: str, options: dict[str, Any]):
    names = ["" if x is None else f"i{i}" for i, x in enumerate(inputs)]
    feed = {n: x for n, x in zip(names, inputs, strict=True) if n}
    made = [f"o{i}" for i in range(outputs)]
    node = helper.make_node(op, names, made, domain=domain, **options)
    # weights must be initializers: otherwise ONNX Runtime cannot pack them and takes another kernel
    packed = [n for n in feed if op == "MatMulNBits" and n != "i0"]
    weights = [onnx.numpy_helper.from_array(feed.pop(n), n) for n in packed]
    ports = [
        helper.make_tensor_value_info(n, helper.np_dtype_to_tensor_dtype(x.dtype), list(x.shape))
        for n, x in feed.items()
    ]
    results = [helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, None) for n in made]
    opsets = [helper.make_opsetid("", 24), helper.make_opsetid(MS, 1)]
    graph = helper.make_graph([node], "g", ports, results, weights)
    return helper.make_model(graph, opset_imports=opsets, ir_version=11), feed


def reference(op: str, inputs: list[Any], outputs: int = 1, domain: str = MS, **options: Any):
    proto, feed = model(op, inputs, outputs, domain, options)
    return ReferenceEvaluator(proto, new_ops=list(CONTRIB_OPS)).run(None, feed)


def engine(op: str, inputs: list[Any], outputs: int = 1, domain: str = MS, **options: Any):
    proto, feed = model(op, inputs, outputs, domain, options)
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads, settings.log_severity_level = 1, 4
    session = onnxruntime.InferenceSession(
        proto.SerializeToString(), settings, providers=["CPUExecutionProvider"]
    )
    return session.run(None, feed)


def agree(op: str, inputs: list[Any], outputs: int = 1, terms: int = 24, **options: Any):
    """Equal but for rounding; `terms`: additions behind one output, as wide as X by default."""
    ours, theirs = (f(op, inputs, outputs, **options) for f in (reference, engine))
    for left, right in zip(ours, theirs, strict=True):
        assert left.shape == right.shape
        assert left.dtype == right.dtype
        assert_same_sums(left, right, terms)


HEADS, KV, SLOTS, SIZE = 6, 2, 21, 16
ATTENTION_TERMS = SIZE + 2 * (SLOTS + 3)  # a score, and the weights and values of all keys


def gqa_inputs(
    past: list[int],
    rows: int,
    *,
    size: int = SIZE,
    rotary: int = 0,
    packed: bool = False,
    positions: Any = None,
    bias: Any = None,
    total: int | None = None,
) -> list[Any]:
    batch = len(past)
    lengths = np.asarray(past) + rows
    q, k, v = (noise(batch, rows, h * size, seed=i) for i, h in enumerate((HEADS, KV, KV)))
    qkv = [np.concatenate([q, k, v], axis=2), None, None] if packed else [q, k, v]
    angle = np.random.default_rng(5).uniform(0, 6, (64, rotary or 1))
    tables = [f(angle).astype(np.float32) if rotary else None for f in (np.cos, np.sin)]
    caches = [noise(batch, KV, SLOTS, size, seed=7), noise(batch, KV, SLOTS, size, seed=8)]
    seen = np.array(total or lengths.max(), np.int32)
    return [*qkv, *caches, (lengths - 1).astype(np.int32), seen, *tables, positions, bias]


def gqa(run: Any, inputs: list[Any], **options: Any):
    return run("GroupQueryAttention", inputs, 3, num_heads=HEADS, kv_num_heads=KV, **options)


def agree_gqa(inputs: list[Any], **options: Any) -> None:
    """Outputs, and the present caches up to each row's length (beyond, ORT leaves them unset)."""
    ours, theirs = (gqa(run, inputs, **options) for run in (reference, engine))
    rows = inputs[0].shape[1]
    for b, last in enumerate(inputs[5]):
        valid = min(rows, last + 1)
        assert_same_sums(ours[0][b, :valid], theirs[0][b, :valid], ATTENTION_TERMS)
        for mine, other in zip(ours[1:], theirs[1:], strict=True):
            assert mine.shape == other.shape
            written = (x[b, :, : last + 1] for x in (mine, other))
            assert_same_sums(*written, terms=2)  # a rotation adds two products


TREE = Tree(np.arange(5), np.array([-1, 0, 0, 1, 3]))


def tree_bias(past: int, total: int) -> np.ndarray:
    bias = np.full((1, 1, 5, total), np.finfo(np.float32).min, np.float32)
    bias[..., :past] = 0
    bias[0, 0, :, past : past + 5][TREE.mask] = 0
    return bias


TURN = {"do_rotary": 1}
CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "chunked prefill": ({"past": [7], "rows": 5}, {}),
    "first prompt": ({"past": [0, 0], "rows": 5, "rotary": 8}, TURN),
    "ragged first prompt": ({"past": [0, -2, -4], "rows": 5, "rotary": 8}, TURN),
    "ragged decode": ({"past": [7, 2, 11], "rows": 1, "rotary": 8}, TURN),
    "packed": ({"past": [7], "rows": 5, "packed": True, "rotary": 8}, TURN),
    "interleaved": ({"past": [7], "rows": 5, "rotary": 8}, {**TURN, "rotary_interleaved": 1}),
    "partial rotary": ({"past": [7], "rows": 5, "size": 32, "rotary": 8}, TURN),
    "partial interleaved packed": (
        {"past": [7], "rows": 5, "size": 32, "rotary": 8, "packed": True},
        {**TURN, "rotary_interleaved": 1},
    ),
    "tree": (
        {
            "past": [7],
            "rows": 5,
            "rotary": 8,
            "positions": 7 + TREE.depth[None],
            "bias": tree_bias(7, 12),
        },
        TURN,
    ),
    "total beyond the rows": ({"past": [7], "rows": 5, "total": 20, "bias": tree_bias(7, 20)}, {}),
    "bias per head, ragged": ({"past": [7, 3], "rows": 1, "bias": noise(2, HEADS, 1, 8)}, {}),
    "softcap, scale, bias": (
        {"past": [7], "rows": 5, "bias": noise(1, 1, 5, 12)},
        {"softcap": 2.0, "scale": 0.3},
    ),
    "window 1": ({"past": [7], "rows": 5}, {"local_window_size": 1}),
    "window 4": ({"past": [7], "rows": 5}, {"local_window_size": 4}),
    "window 4 first prompt": ({"past": [0], "rows": 7}, {"local_window_size": 4}),
    "smooth softmax": ({"past": [7], "rows": 5}, {"smooth_softmax": 1}),
    "growing cache": ({"past": [SLOTS], "rows": 3}, {}),
}


@pytest.mark.parametrize("name", CASES)
def test_group_query_attention(name: str):
    shape, options = CASES[name]
    agree_gqa(gqa_inputs(**shape), **options)


def test_first_prompt_counts_only_the_first_position_as_the_engine_does():
    odd = np.array([[3, 9, 1, 1, 0]])
    agree_gqa(gqa_inputs([0], 5, rotary=8, positions=odd), do_rotary=1)


def test_a_ragged_batch_of_chunks_is_its_rows_one_by_one():
    """ONNX Runtime's CPU kernel takes such a batch row by row only."""
    past, options = [7, 2, 11], {"do_rotary": 1}
    inputs = gqa_inputs(past, 5, rotary=8)
    with pytest.raises(Exception, match="batch_size must be 1"):
        gqa(engine, inputs, **options)
    ours = gqa(reference, inputs, **options)
    for b, start in enumerate(past):
        one = [x[b : b + 1] if i < 6 else x for i, x in enumerate(inputs)]
        one[6] = np.array(start + 5, np.int32)
        theirs = gqa(engine, one, **options)
        assert_same_sums(ours[0][b], theirs[0][0], ATTENTION_TERMS)


def test_a_tree_is_its_branches():
    """Each path of the tree alone, as a chain, gives the rows of that path."""
    whole = gqa_inputs([7], 5, rotary=8, positions=7 + TREE.depth[None], bias=tree_bias(7, 12))
    rows = gqa(reference, whole, do_rotary=1)[0][0]
    path = list(TREE.path_to(4))
    chain = [x[:, path] if i < 3 else x for i, x in enumerate(whole)]
    chain[5], chain[6] = np.array([10], np.int32), np.array(11, np.int32)
    alone = gqa(reference, [*chain[:9], None, None], do_rotary=1)[0][0]
    assert_same_sums(alone, rows[path], ATTENTION_TERMS)


def test_what_is_not_known_is_refused():
    with pytest.raises(TypeError):
        gqa(reference, gqa_inputs([7], 5), causal=0)
    with pytest.raises(ValueError, match="attention_bias covers 20"):
        gqa(reference, gqa_inputs([7], 5, bias=noise(1, 1, 5, 20)))
    with pytest.raises(ValueError, match="does not fit"):
        gqa(reference, gqa_inputs([7, 3], 5, total=9))


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
