"""One program per node: a pass over the vocabulary per failed child, and two to draw."""

# pyright: basic
# (Triton's language is not typed as Python)
import triton
import triton.language as tl


@triton.jit
def _residual(p, q, factor, first, vocabulary, BLOCK: tl.constexpr):
    ids = first + tl.arange(0, BLOCK)
    inside = ids < vocabulary
    have = tl.load(p + ids, mask=inside, other=0.0)
    off = tl.load(q + ids, mask=inside, other=0.0)
    return tl.maximum(have - factor * off, 0.0)


@triton.jit
def _mass(p, q, factor, vocabulary, BLOCK: tl.constexpr):
    mass = 0.0
    for first in range(0, vocabulary, BLOCK):
        mass += tl.sum(_residual(p, q, factor, first, vocabulary, BLOCK), axis=0)
    return mass


@triton.jit
def tree_sample(
    target, draft, tokens, parents, uniforms, vocabulary, choice,
    N: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    batch = tl.program_id(0).to(tl.int64)
    node = tl.program_id(1)
    row = batch * N + node
    p = target + row * vocabulary
    q = draft + row * vocabulary
    chosen = tl.full([], -1, tl.int64)
    factor = 0.0
    rest = 1.0
    mass = _mass(p, q, factor, vocabulary, BLOCK)
    for child in range(node + 1, N):
        if (tl.load(parents + batch * N + child) == node) & (chosen < 0):
            token = tl.load(tokens + batch * N + child)
            q_token = tl.load(q + token)
            r_token = tl.maximum(tl.load(p + token) - factor * q_token, 0.0)
            test = tl.load(uniforms + 2 * batch * N + child)
            if (test * q_token * mass < r_token * rest) & (q_token > 0):
                chosen = token
            else:
                if (rest > 0) & (q_token > 0):
                    factor += mass / rest
                    mass = _mass(p, q, factor, vocabulary, BLOCK)
                rest -= q_token
    if chosen < 0:
        if mass <= 0:  # rounding left nothing of a draft that equals the target
            factor = 0.0
            mass = _mass(p, q, factor, vocabulary, BLOCK)
        quantile = tl.load(uniforms + (2 * batch + 1) * N + node) * mass
        before = 0.0
        for first in range(0, vocabulary, BLOCK):
            part = _residual(p, q, factor, first, vocabulary, BLOCK)
            whole = tl.sum(part, axis=0)
            if (chosen < 0) & (before + whole > quantile):
                index = tl.arange(0, BLOCK)
                past = before + tl.cumsum(part, axis=0) > quantile
                # a scan rounds unlike a sum: where it stays below, the last token is meant
                last = tl.max(tl.where(part > 0, index, -1), axis=0)
                hit = tl.min(tl.where(past & (part > 0), index, BLOCK), axis=0)
                chosen = (first + tl.minimum(hit, last)).to(tl.int64)
            before += whole
    tl.store(choice + row, chosen)
