"""One program per sequence, with Triton's own Philox."""

# pyright: basic
# (Triton's language is not typed as Python)
import triton
import triton.language as tl


@triton.jit
def uniforms(seed, step, numbers, ROWS: tl.constexpr, PADDED: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    index = tl.arange(0, PADDED)
    blank = tl.zeros([PADDED], tl.uint32)
    turn = blank + tl.load(step + row).to(tl.uint32)
    key = tl.load(seed + row).to(tl.uint64, bitcast=True)
    word, _, _, _ = tl.philox(key, index.to(tl.uint32), turn, blank, blank)
    fraction = (word >> 8).to(tl.float32) * 5.9604644775390625e-8
    tl.store(numbers + row * 2 * ROWS + index, fraction, mask=index < 2 * ROWS)
