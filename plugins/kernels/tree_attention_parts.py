"""Flash decoding: the programs of `tree_attention`, each for one part of the slots."""

# pyright: basic
# (Triton's language is not typed as Python)
import triton
import triton.language as tl

from graftline.plugins.kernels.tree_attention import LOG2E, attend


@triton.jit
def tree_attention_parts(
    query, key, value, parents, lengths, slots, sums, tops, totals,
    N: tl.constexpr, NP: tl.constexpr, HQ: tl.constexpr, HKV: tl.constexpr,
    D: tl.constexpr, DP: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_S: tl.constexpr,
    ROUNDS: tl.constexpr, SCALE: tl.constexpr, SOFTCAP: tl.constexpr, WINDOW: tl.constexpr,
    PARTS: tl.constexpr,
):  # fmt: skip
    part = tl.program_id(1) % PARTS
    top, total, acc, at, inside = attend(
        query, key, value, parents, lengths, slots, tl.program_id(1) // PARTS, part,
        N, NP, HQ, HKV, D, DP, BLOCK_M, BLOCK_S, ROUNDS, SCALE, SOFTCAP, WINDOW, PARTS,
    )  # fmt: skip
    column = tl.arange(0, DP)
    to = (at // N * PARTS + part) * N + at % N  # [B, HQ, PARTS, N]
    tl.store(tops + to, tl.where(total > 0, top / LOG2E, -1e30), mask=inside)
    tl.store(totals + to, total, mask=inside)
    tl.store(
        sums + to[:, None] * D + column[None, :], acc,
        mask=inside[:, None] & (column < D)[None, :],
    )  # fmt: skip
