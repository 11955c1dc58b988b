"""One program per sequence; a node stays when fewer than ROWS nodes are better."""

# pyright: basic
# (Triton's language is not typed as Python)
import triton
import triton.language as tl


@triton.jit
def tree_prune(
    scores, tokens, parents, kept_tokens, kept_parents, kept,
    M: tl.constexpr, MP: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    index = tl.arange(0, MP)
    inside = index < M
    at = row * M + index
    mine = tl.load(scores + at, mask=inside, other=float("-inf"))
    rank = tl.zeros([MP], tl.int32)
    for other in range(M):
        theirs = tl.load(scores + row * M + other)
        rank += ((theirs > mine) | ((theirs == mine) & (other < index))).to(tl.int32)
    stays = inside & (rank < ROWS)
    place = tl.cumsum(stays.to(tl.int32), axis=0) - 1
    token = tl.load(tokens + at, mask=inside, other=0)
    parent = tl.load(parents + at, mask=inside, other=-1).to(tl.int32)
    above = tl.where(parent < 0, -1, tl.gather(place, tl.maximum(parent, 0), 0))
    to = row * ROWS + place
    tl.store(kept_tokens + to, token, mask=stays)
    tl.store(kept_parents + to, above.to(tl.int64), mask=stays)
    tl.store(kept + to, index.to(tl.int64), mask=stays)
