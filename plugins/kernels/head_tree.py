"""One program per (sequence, level): its best tokens one after the other, then its nodes."""

# pyright: basic
# (Triton's language is not typed as Python)
import triton
import triton.language as tl


@triton.jit
def head_tree(
    logits, root, depths, ranks, vocabulary, tokens,
    N: tl.constexpr, NP: tl.constexpr, LEVELS: tl.constexpr, WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    row = (tl.program_id(0) // LEVELS).to(tl.int64)
    level = tl.program_id(0) % LEVELS
    source = logits + tl.program_id(0).to(tl.int64) * vocabulary
    index = tl.arange(0, NP)
    inside = index < N
    depth = tl.load(depths + index, mask=inside, other=-1)
    rank = tl.load(ranks + index, mask=inside, other=0)
    if level == 0:
        tl.store(tokens + row * N + index, tl.load(root + row), mask=inside & (depth == 0))
    bound = float("inf")  # the token found last: its logit and its id
    found = -1
    for place in range(WIDTH):
        best = tl.full([BLOCK], float("-inf"), tl.float32)
        best_id = tl.full([BLOCK], 2147483647, tl.int32)
        for first in range(0, vocabulary, BLOCK):
            ids = first + tl.arange(0, BLOCK)
            x = tl.load(source + ids, mask=ids < vocabulary, other=float("-inf")).to(tl.float32)
            left = (ids < vocabulary) & ((x < bound) | ((x == bound) & (ids > found)))
            better = left & ((x > best) | (best_id == 2147483647))
            best = tl.where(better, x, best)
            best_id = tl.where(better, ids, best_id)
        bound = tl.max(best, axis=0)
        found = tl.min(tl.where(best == bound, best_id, 2147483647), axis=0)
        mine = inside & (depth == level + 1) & (rank == place)
        tl.store(tokens + row * N + index, found.to(tl.int64), mask=mine)
