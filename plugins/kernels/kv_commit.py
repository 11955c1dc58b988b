"""One program per (layer, sequence, KV head) moves its rows up, a block of places at a time."""

# pyright: basic
# (Triton's language is not typed as Python)
import triton
import triton.language as tl


@triton.jit
def kv_commit(
    cache, path, count, lengths, batch, slots, committed,
    P: tl.constexpr, K: tl.constexpr, D: tl.constexpr, DP: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    sequence = (row // K) % batch
    steps = tl.load(count + sequence).to(tl.int32)
    start = row * slots + tl.load(lengths + sequence)
    column = tl.arange(0, DP)
    for first in range(0, tl.minimum(steps, P), BLOCK):
        place = first + tl.arange(0, BLOCK)
        inside = place < steps
        source = tl.load(path + sequence * P + place, mask=inside, other=0)
        moves = (inside & (source != place))[:, None] & (column < D)[None, :]
        rows = tl.load(
            cache + (start + source)[:, None] * D + column[None, :], mask=moves, other=0.0
        )
        tl.debug_barrier()  # a path ascends, but threads of one block do not wait for each other
        tl.store(
            committed + (start + place)[:, None] * D + column[None, :], rows, mask=moves
        )
        tl.debug_barrier()
