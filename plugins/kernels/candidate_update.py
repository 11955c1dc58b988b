"""One program per sequence; a node writes its row unless another node of its token comes later."""

# pyright: basic
# (Triton's language is not typed as Python)
import triton
import triton.language as tl


@triton.jit
def candidate_update(
    table, tokens, parents, topk, path, batch, updated,
    N: tl.constexpr, NP: tl.constexpr, W: tl.constexpr, WP: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0)
    base = row.to(tl.int64) * N
    index = tl.arange(0, NP)
    inside = index < N
    token = tl.load(tokens + base + index, mask=inside, other=-1)
    parent = tl.load(parents + base + index, mask=inside, other=-1)
    writes = inside & ((parent >= 0) | (index == 0))
    accepted = tl.zeros([NP], tl.int32)
    for place in range(N):
        accepted |= (tl.load(path + base + place) == index).to(tl.int32)
    weight = accepted * N + index
    # rivals of this sequence: a token's heaviest node writes
    for other in range(N):
        other_writes = (other == 0) | (tl.load(parents + base + other) >= 0)
        heavier = tl.sum(tl.where(index == other, weight, 0), axis=0) > weight
        writes &= ~(other_writes & heavier & (tl.load(tokens + base + other) == token))
    # rivals of later sequences: any of them writes instead
    for later in range((row + 1) * N, batch * N):
        other_writes = (later % N == 0) | (tl.load(parents + later) >= 0)
        writes &= ~(other_writes & (tl.load(tokens + later) == token))
    column = tl.arange(0, WP)
    mask = writes[:, None] & (column < W)[None, :]
    rows = tl.load(topk + (base + index)[:, None] * W + column[None, :], mask=mask, other=0)
    tl.store(updated + token[:, None] * W + column[None, :], rows, mask=mask)
