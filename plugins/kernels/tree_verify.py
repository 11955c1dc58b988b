"""One program per sequence walks its tree; a step finds the first child with the chosen token."""

# pyright: basic
# (Triton's language is not typed as Python)
import triton
import triton.language as tl


@triton.jit
def tree_verify(
    choice, tokens, parents, path, accepted, count, following, N: tl.constexpr, NP: tl.constexpr
):
    row = tl.program_id(0).to(tl.int64)
    index = tl.arange(0, NP)
    inside = index < N
    at = row * N + index
    token = tl.load(tokens + at, mask=inside, other=-1)
    parent = tl.load(parents + at, mask=inside, other=-1).to(tl.int32)
    walked = tl.full([NP], -1, tl.int64)
    added = tl.full([NP], -1, tl.int64)
    node = 0
    steps = 0
    chosen = tl.load(choice + row * N)
    while (node < N) & (steps < N):
        chosen = tl.load(choice + row * N + node)
        walked = tl.where(index == steps, node, walked)
        added = tl.where(index == steps, chosen, added)
        steps += 1
        child = tl.where((parent == node) & (token == chosen) & inside, index, N)
        node = tl.min(child, axis=0)
    tl.store(path + at, walked, mask=inside)
    tl.store(accepted + at, added, mask=inside)
    tl.store(count + row, steps.to(tl.int64))
    tl.store(following + row, chosen)
