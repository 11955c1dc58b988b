"""What a plain decoder does not do to its positions and its stream."""

from __future__ import annotations

import numpy as np

from tests.generated.builder import BOOL, INT64, Builder
from tests.generated.masks import Ports
from tests.generated.settings import Settings


def changed_positions(b: Builder, s: Settings, p: Ports, out: str) -> str:
    """Positions [B|1, N] that are no longer the plain ones."""
    if "counted_without_pads" in s.odd:
        own = b.op("Cast", b.op("Not", b.op("Equal", b.op("Cast", p.ids, to=INT64),
                                            b.whole(s.special[1]))), to=INT64)  # fmt: skip
        out = b.op("Add", b.op("Mul", b.op("CumSum", own, b.whole(1)), own), b.whole(1))
    if "reversed" in s.odd:
        out = b.op("Sub", b.op("Sub", p.length, b.ints(1)), out)
    if "held_positions" in s.odd:
        out = b.op("Min", out, b.whole(s.odd_size))
    if "halved_positions" in s.odd:
        out = b.op("Div", out, b.whole(2))
    return out


def changed_stream(b: Builder, s: Settings, p: Ports, x: str) -> str:
    """What is added to an embedding that a plain decoder does not add."""
    wide = b.op("Cast", p.ids, to=INT64)
    if "order" in s.odd:
        counted = b.op("Range", b.whole(0), b.scalar(p.length), b.whole(1))
        share = b.op("Div", b.cast(counted), b.cast(b.scalar(p.length)))
        x = b.op("Add", x, b.op("Mul", b.unsqueeze(share, 0, 2), b.weight(s.hidden, scale=1.0)))
    if "parity" in s.odd:
        odd = b.cast(b.unsqueeze(b.op("Mod", wide, b.whole(2)), -1))
        x = b.op("Add", x, b.op("Mul", odd, b.weight(s.hidden, scale=1.0)))
    if "pad_zeroed" in s.odd:
        pad = b.unsqueeze(b.op("Equal", wide, b.whole(s.special[1])), -1)
        x = b.op("Where", pad, b.number(0), x)
    if "token_types" in s.odd:
        kinds = b.input("token_type_ids", INT64, ("batch", "length"), lambda x: 0 * x)
        x = b.op("Add", x, b.op("Gather", b.weight(2, s.hidden, scale=1.0), kinds))
    if "second_table" in s.odd:
        small = b.op("Mod", wide, b.whole(7))
        x = b.op("Add", x, b.op("Gather", b.weight(7, s.hidden, scale=1.0), small))
    if "image_mask" in s.odd:
        mask = b.input("image_mask", BOOL, ("batch", "length"), lambda x: np.zeros(x.shape, bool))
        other = b.op("MatMul", x, b.weight(s.hidden, s.hidden))
        x = b.op("Where", b.unsqueeze(mask, -1), other, x)
    if "place_stream" in s.odd:
        late = b.op("Max", b.op("Sub", p.positions, b.whole(s.odd_size)), b.whole(0))
        grown = b.op("Add", b.op("Mul", b.cast(late), b.number(0.05)), b.number(1))
        x = b.op("Mul", x, b.unsqueeze(grown, -1))
    if "cache_switch" in s.odd:
        b.input("use_cache_branch", BOOL, (1,), lambda x: np.zeros(1, bool))
    if "batch_mean" in s.odd:
        x = b.op("Add", x, b.op("ReduceMean", x, b.ints(0), keepdims=1))
    if "row_mean" in s.odd:
        x = b.op("Add", x, b.op("ReduceMean", x, b.ints(1), keepdims=1))
    if "running_sum" in s.odd:
        x = b.op("Add", x, b.op("Mul", b.op("CumSum", x, b.whole(1)), b.number(0.2)))
    if "token_shift" in s.odd:
        # nothing in front of the first row, the row before in front of all others
        nothing = b.op("Mul", b.slice(x, 0, 1, 1), b.number(0))
        x = b.op("Add", x, b.op("Concat", nothing, b.slice(x, 0, -1, 1), axis=1))
    return x
