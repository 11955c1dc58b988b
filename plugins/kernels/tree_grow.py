"""One program per sequence; a candidate's place is how many are better."""

# pyright: basic
# (Triton's language is not typed as Python)
import triton
import triton.language as tl


@triton.jit
def tree_grow(
    joint, logprobs, ids, scores, origin, tokens,
    W: tl.constexpr, COUNT: tl.constexpr, PADDED: tl.constexpr, BEAM: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    index = tl.arange(0, PADDED)
    inside = index < COUNT
    base = joint + row * (COUNT // W)
    own = tl.load(logprobs + row * COUNT + index, mask=inside, other=float("-inf"))
    mine = tl.load(base + index // W, mask=inside, other=0.0) + own
    place = tl.zeros([PADDED], tl.int32)
    for other in range(COUNT):
        theirs = tl.load(base + other // W) + tl.load(logprobs + row * COUNT + other)
        place += ((theirs > mine) | ((theirs == mine) & (other < index))).to(tl.int32)
    taken = inside & (place < BEAM)
    token = tl.load(ids + row * COUNT + index, mask=inside, other=0)
    tl.store(scores + row * BEAM + place, mine, mask=taken)
    tl.store(origin + row * BEAM + place, (index // W).to(tl.int64), mask=taken)
    tl.store(tokens + row * BEAM + place, token, mask=taken)
