"""Flash attention (arXiv 2205.14135) of a tree over a cache, in one program per (KV head, rows).

Rows of one KV head's group go together, so keys and values are read once for all of them. The tree
is a set of ancestor bits per node, computed here from parent pointers by doubling.
"""

# pyright: basic
# (Triton's language is not typed as Python)
import triton
import triton.language as tl

LOG2E = tl.constexpr(1.4426950408889634)


@triton.jit
def _absorb(
    q, keys, values, slot, used, seen, inside_d, top, total, acc,
    D: tl.constexpr, DP: tl.constexpr, SCALE: tl.constexpr, SOFTCAP: tl.constexpr,
):  # fmt: skip
    """The running softmax after one tile: slots `slot` [S], of which those `used` [S] are read,
    visible where `seen` [M, S]."""
    column = tl.arange(0, DP)
    at = slot.to(tl.int64) * D
    k = tl.load(
        keys + at[None, :] + column[:, None], mask=used[None, :] & inside_d[:, None], other=0.0
    )
    scores = tl.dot(q, k, input_precision="ieee") * SCALE
    if SOFTCAP > 0:
        scores = SOFTCAP * (1 - 2 / (tl.exp(scores * (2 / SOFTCAP)) + 1))
    scores = tl.where(seen, scores * LOG2E, float("-inf"))
    higher = tl.maximum(top, tl.max(scores, axis=1))
    base = tl.where(higher == float("-inf"), 0.0, higher)
    weights = tl.exp2(scores - base[:, None])
    shrink = tl.exp2(top - base)
    v = tl.load(
        values + at[:, None] + column[None, :], mask=used[:, None] & inside_d[None, :], other=0.0
    )
    acc = acc * shrink[:, None] + tl.dot(weights.to(v.dtype), v, input_precision="ieee")
    return higher, total * shrink + tl.sum(weights, axis=1), acc


@triton.jit
def _tree(parents, batch, N: tl.constexpr, NP: tl.constexpr, ROUNDS: tl.constexpr):
    """The depth of each node [NP], and its parent, which is itself at a root."""
    index = tl.arange(0, NP)
    parent = tl.load(parents + batch * N + index, mask=index < N, other=-1).to(tl.int32)
    depth = (parent >= 0).to(tl.int32)
    first_up = tl.where(parent >= 0, parent, index)
    up = first_up
    for _ in tl.static_range(ROUNDS):
        depth += tl.gather(depth, up, 0)
        up = tl.gather(up, up, 0)
    return depth, first_up


@triton.jit
def _ancestors(
    depth, first_up, node, word: tl.constexpr,
    NP: tl.constexpr, ROUNDS: tl.constexpr, WINDOW: tl.constexpr,
):  # fmt: skip
    """[M, 32]: which of the nodes 32 * word to 32 * word + 31 the row of node `node` [M] sees:
    its ancestors and itself, within the window."""
    bit = tl.arange(0, NP) - 32 * word
    kin = tl.where((bit >= 0) & (bit < 32), 1 << (bit & 31), 0)
    up = first_up
    for _ in tl.static_range(ROUNDS):
        kin |= tl.gather(kin, up, 0)
        up = tl.gather(up, up, 0)
    other = tl.arange(0, 32)
    seen = ((tl.gather(kin, node, 0)[:, None] >> other[None, :]) & 1) != 0
    if WINDOW > 0:
        other_depth = tl.gather(depth, tl.minimum(32 * word + other, NP - 1), 0)
        seen &= tl.gather(depth, node, 0)[:, None] - other_depth[None, :] < WINDOW
    return seen


@triton.jit
def attend(
    query, key, value, parents, lengths, slots, block, part,
    N: tl.constexpr, NP: tl.constexpr, HQ: tl.constexpr, HKV: tl.constexpr,
    D: tl.constexpr, DP: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_S: tl.constexpr,
    ROUNDS: tl.constexpr, SCALE: tl.constexpr, SOFTCAP: tl.constexpr, WINDOW: tl.constexpr,
    PARTS: tl.constexpr,
):  # fmt: skip
    """Softmax of block `block` of the rows over part `part` of the slots, not yet divided.

    The greatest score (in powers of two), the sum of weights, and the weighted values of each row;
    then which (head, node) each row is, as row of [B * HQ * N], and whether it is one.
    """
    GROUP: tl.constexpr = HQ // HKV
    batch = (tl.program_id(0) // HKV).to(tl.int64)
    head = tl.program_id(0) % HKV
    row = block * BLOCK_M + tl.arange(0, BLOCK_M)
    inside = row < N * GROUP
    node = tl.minimum(row // GROUP, N - 1)
    column = tl.arange(0, DP)
    inside_d = column < D
    at = (batch * HQ + head * GROUP + row % GROUP) * N + node
    q = tl.load(
        query + at[:, None] * D + column[None, :], mask=inside[:, None] & inside_d[None, :],
        other=0.0,
    )  # fmt: skip
    length = tl.load(lengths + batch).to(tl.int32)
    keys = key + (batch * HKV + head) * slots * D
    values = value + (batch * HKV + head) * slots * D

    depth, first_up = _tree(parents, batch, N, NP, ROUNDS)
    row_depth = tl.gather(depth, node, 0)

    top = tl.full([BLOCK_M], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    acc = tl.zeros([BLOCK_M, DP], tl.float32)

    share = (length + 64 * PARTS - 1) // (64 * PARTS) * 64
    start = part * share
    end = tl.minimum(start + share, length)
    if WINDOW > 0:  # the root, at position `length`, looks back furthest
        start = tl.maximum(start, (length - WINDOW + 1) // BLOCK_S * BLOCK_S)
    for first in range(start, end, BLOCK_S):
        slot = first + tl.arange(0, BLOCK_S)
        used = slot < end
        seen = used[None, :]
        if WINDOW > 0:
            seen &= (length + row_depth)[:, None] - slot[None, :] < WINDOW
        top, total, acc = _absorb(
            q, keys, values, slot, used, seen, inside_d, top, total, acc, D, DP, SCALE, SOFTCAP
        )

    if part == PARTS - 1:
        for word in tl.static_range((N + 31) // 32):
            other = 32 * word + tl.arange(0, 32)
            seen = _ancestors(depth, first_up, node, word, NP, ROUNDS, WINDOW)
            top, total, acc = _absorb(
                q, keys, values, length + other, other < N, seen, inside_d, top, total, acc,
                D, DP, SCALE, SOFTCAP,
            )  # fmt: skip
    return top, total, acc, at, inside


@triton.jit
def tree_attention(
    query, key, value, parents, lengths, slots, output,
    N: tl.constexpr, NP: tl.constexpr, HQ: tl.constexpr, HKV: tl.constexpr,
    D: tl.constexpr, DP: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_S: tl.constexpr,
    ROUNDS: tl.constexpr, SCALE: tl.constexpr, SOFTCAP: tl.constexpr, WINDOW: tl.constexpr,
):  # fmt: skip
    _, total, acc, at, inside = attend(
        query, key, value, parents, lengths, slots, tl.program_id(1), 0,
        N, NP, HQ, HKV, D, DP, BLOCK_M, BLOCK_S, ROUNDS, SCALE, SOFTCAP, WINDOW, 1,
    )  # fmt: skip
    column = tl.arange(0, DP)
    result = acc / tl.where(total == 0, 1.0, total)[:, None]
    tl.store(
        output + at[:, None] * D + column[None, :], result.to(output.dtype.element_ty),
        mask=inside[:, None] & (column < D)[None, :],
    )  # fmt: skip
