"""One program per (head, node) adds up the parts of its row."""

# pyright: basic
# (Triton's language is not typed as Python)
import triton
import triton.language as tl


@triton.jit
def tree_attention_merge(
    sums, tops, totals, like, output,
    N: tl.constexpr, D: tl.constexpr, DP: tl.constexpr, PARTS: tl.constexpr, PP: tl.constexpr,
):  # fmt: skip
    head = tl.program_id(0).to(tl.int64)
    node = tl.program_id(1)
    part = tl.arange(0, PP)
    column = tl.arange(0, DP)
    inside = part < PARTS
    at = (head * PARTS + part) * N + node
    top = tl.load(tops + at, mask=inside, other=-1e30)
    weight = tl.where(inside, tl.exp(top - tl.max(top, axis=0)), 0.0)
    total = tl.sum(weight * tl.load(totals + at, mask=inside, other=0.0), axis=0)
    rows = tl.load(
        sums + at[:, None] * D + column[None, :],
        mask=inside[:, None] & (column < D)[None, :], other=0.0,
    )  # fmt: skip
    result = tl.sum(rows * weight[:, None], axis=0) / total
    to = (head * N + node) * D + column
    tl.store(output + to, result.to(output.dtype.element_ty), mask=column < D)
