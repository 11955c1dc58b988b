"""One program per sequence; a round per level looks up all nodes at once."""

# pyright: basic
# (Triton's language is not typed as Python)
import triton
import triton.language as tl


@triton.jit
def draft_tree(
    table, root, parents, ranks, tokens, kept_parents,
    N: tl.constexpr, NP: tl.constexpr, W: tl.constexpr, LEVELS: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    index = tl.arange(0, NP)
    inside = index < N
    parent = tl.load(parents + index, mask=inside, other=-1).to(tl.int32)
    rank = tl.load(ranks + index, mask=inside, other=0)
    first = tl.load(root + row)
    held = tl.full([NP], 0, tl.int64) + first
    for _ in tl.static_range(LEVELS):
        above = tl.gather(held, tl.maximum(parent, 0), 0)
        found = tl.load(table + above * W + rank, mask=inside & (above >= 0), other=-1)
        held = tl.where(parent < 0, first, found.to(tl.int64))
    there = held >= 0
    at = row * N + index
    tl.store(tokens + at, tl.where(there, held, 0), mask=inside)
    tl.store(kept_parents + at, tl.where(there, parent, -1).to(tl.int64), mask=inside)
