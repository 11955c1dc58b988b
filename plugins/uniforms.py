"""Uniforms: counter-based random numbers, so that a step needs no state and can be repeated."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from graftline.plugins.spec import Array, Dims, Plan, Plugin, Tensor, Values, power_of_two

# Philox 4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011) in 64-bit
# signed integers: a 32-bit word times a 16-bit half of the multiplier fits, the whole would not.
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)


def _product(name: str, word: str, multiplier: int) -> str:
    """{name}_high and {name}_low: the two words of `word` x `multiplier`."""
    return f"""
    {name}_m1 = Constant <value = int64 {{{multiplier >> 16}}}> ()
    {name}_m0 = Constant <value = int64 {{{multiplier & 0xFFFF}}}> ()
    {name}_p1 = Mul ({word}, {name}_m1)
    {name}_p0 = Mul ({word}, {name}_m0)
    {name}_high = Div (Add ({name}_p1, Div ({name}_p0, half)), half)
    {name}_low = Mod (Add (Mul (Mod ({name}_p1, half), half), {name}_p0), word)"""


def _round(r: int) -> str:
    lines = [_product(f"a{r}", f"x0_{r}", _MULTIPLIERS[0])]
    lines.append(_product(f"b{r}", f"x2_{r}", _MULTIPLIERS[1]))
    for i in (0, 1):
        lines.append(f"""
    step{i}_{r} = Constant <value = int64 {{{r * _WEYL[i] & 0xFFFFFFFF}}}> ()
    key{i}_{r} = Mod (Add (key{i}, step{i}_{r}), word)""")
    lines.append(f"""
    x0_{r + 1} = BitwiseXor (BitwiseXor (b{r}_high, x1_{r}), key0_{r})
    x1_{r + 1} = Identity (b{r}_low)
    x2_{r + 1} = BitwiseXor (BitwiseXor (a{r}_high, x3_{r}), key1_{r})
    x3_{r + 1} = Identity (a{r}_low)""")
    return "".join(lines)


BODY = f"""
    half = Constant <value = int64 {{65536}}> ()
    word = Constant <value = int64 {{4294967296}}> ()
    byte = Constant <value = int64 {{256}}> ()
    unit = Constant <value = float {{5.9604644775390625e-8}}> ()
    rows = Constant <value_int: int = @rows> ()
    index = Range (zero, Add (rows, rows), one)
    seed_column = Unsqueeze (seed, axis_1)
    key0 = Mod (seed_column, word)
    key1 = Mod (Div (Sub (seed_column, key0), word), word)
    x0_0 = Mul (index, one)
    blank = Mul (index, zero)
    x1_0 = Add (Mod (Unsqueeze (step, axis_1), word), blank)
    x2_0 = Identity (blank)
    x3_0 = Identity (blank)
    {"".join(_round(r) for r in range(10))}
    fraction = Mul (Cast <to = 1> (Div (x0_10, byte)), unit)
    leading = Constant <value_ints = [0, 2]> ()
    uniforms = Reshape (fraction, Concat <axis = 0> (leading, Unsqueeze (rows, zero)))
"""


def philox(key: Array, counter: list[Array]) -> list[Array]:
    """The four words of Philox 4x32-10 for a key [2, ...] and four counters, uint64 below 2^32."""
    x0, x1, x2, x3 = counter
    low = np.uint64(0xFFFFFFFF)
    for r in range(10):
        k0, k1 = ((k + np.uint64(r * w)) & low for k, w in zip(key, _WEYL, strict=True))
        a, b = x0 * np.uint64(_MULTIPLIERS[0]), x2 * np.uint64(_MULTIPLIERS[1])
        x0, x1 = (b >> np.uint64(32)) ^ x1 ^ k0, b & low
        x2, x3 = (a >> np.uint64(32)) ^ x3 ^ k1, a & low
    return [x0, x1, x2, x3]


def reference(seed: Array, step: Array, *, rows: int) -> tuple[Array, ...]:
    low = np.uint64(0xFFFFFFFF)
    wide = seed.astype(np.uint64)[:, None]
    index = np.arange(2 * rows, dtype=np.uint64)[None]
    blank = np.zeros_like(index)
    key = np.stack([wide & low, wide >> np.uint64(32)])
    words = philox(key, [index, (step.astype(np.uint64) & low)[:, None] + blank, blank, blank])[0]
    fraction = (words >> np.uint64(8)).astype(np.float32) * np.float32(2.0**-24)
    return (fraction.reshape(len(seed), 2, rows),)


def plan(dims: Dims, values: Values, cdiv: Callable[[Any, int], Any]) -> Plan:
    rows = int(values["rows"])
    return Plan({"ROWS": rows, "PADDED": power_of_two(2 * rows)}, (dims["B"], 1), warps=1)


UNIFORMS = Plugin(
    name="Uniforms",
    module="uniforms",
    inputs=(Tensor("seed", "int64", ("B",)), Tensor("step", "int64", ("B",))),
    outputs=(Tensor("uniforms", "float32", ("B", "2", "rows")),),
    body=BODY,
    reference=reference,
    plan=plan,
    attributes={"rows": 16},
)
"""`TreeSample`'s numbers in [0, 1): Philox 4x32-10 with key `seed` >= 0 and counter (place, step),
24 bits each. A sequence counts its steps."""
