"""GroupQueryAttention equals ONNX Runtime's CPU kernel: prompts, chunks, trees."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from graftline.tree import Tree
from tests.core.kernels import ATTENTION_TERMS, HEADS, KV, SIZE, SLOTS, engine, noise, reference
from tests.rounding import assert_same_sums


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
