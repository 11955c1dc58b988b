"""What `--skip` asks for: blocks of a model, or only their attention or MLP, that a route leaves
out."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from graftline.errors import GraftlineError, nearest

ROUTE = "route"
"""The stage of a bundle that is the target without the blocks that `--skip` names; also what a
recipe's needs call it."""
MIDDLE = "middle"
"""Every fourth block of the middle half: on SmolLM2 blocks apart cost less agreement than as many
in a row (0.41 of 1 for five apart, 0.26 for five in a row)."""
MANY = 1 << 20
"""More blocks than any model has."""
SPREAD, LOWER = "spread", "lower"
ORDERS = (SPREAD, LOWER)
"""In which order a speed-up takes blocks: evenly spread, or from the second upwards; the first and
the last block are always kept."""
PARTS = ("layers", "attention", "mlp")
"""What may be left out of a block: all of it, or one part."""
_HELP = "as in --skip 10-20 or --skip attention=8-15+20,mlp=12"


def route_stage(schedule: str, number: int) -> str:
    """The stage of a schedule's route 1, 2, ..."""
    return f"{schedule}-{number}"


@dataclass(frozen=True)
class Route:
    """A way through a model of `count` blocks: the numbers of those without attention, and of those
    without MLP."""

    count: int
    attention: frozenset[int]
    mlp: frozenset[int]

    @classmethod
    def of(cls, count: int, layers: str, attention: str, mlp: str) -> Route:
        """Read the options of layer-skip for a host of so many blocks. Raises GraftlineError for a
        block it does not have, and where nothing would be left."""
        both = blocks_of(layers, count)
        route = cls(count, both | blocks_of(attention, count), both | blocks_of(mlp, count))
        if len(route.attention) == count:
            what = "every block" if len(route.whole) == count else "every attention"
            raise GraftlineError(f"a route that skips {what} of {count} is no model; keep one")
        return route

    @property
    def whole(self) -> frozenset[int]:
        """The blocks of which nothing is left."""
        return self.attention & self.mlp

    def way(self, block: int) -> tuple[bool, bool]:
        """Whether a block's attention is skipped, and whether its MLP is."""
        return block in self.attention, block in self.mlp


def blocks_of(text: str, count: int) -> frozenset[int]:
    """Read `10-20+25` or `middle`, of so many blocks. Raises GraftlineError."""
    if text == MIDDLE:
        start = max(count // 4, 1) if count > 1 else 0
        return frozenset(range(start, count - count // 4, 4))
    found = set[int]()
    for word in filter(None, text.split("+")):
        first, _, last = word.partition("-")
        if not first.isdecimal() or not (last or first).isdecimal() or word.endswith("-"):
            raise GraftlineError(
                f"'{word}' is neither a block nor a range of blocks; write {MIDDLE}, or numbers "
                "and ranges joined by +, as 3+10-20"
            )
        low, high = int(first), int(last or first)
        if low > high:
            raise GraftlineError(f"the range of blocks {word} is empty; write {high}-{low}")
        if high >= count:
            span = f"; this host has blocks 0 to {count - 1}" if count < MANY else ""
            raise GraftlineError(f"there is no block {high} to skip{span}")
        found.update(range(low, high + 1))
    return frozenset(found)


def ordered(count: int, skipped: int, order: str) -> frozenset[int]:
    """So many of `count` blocks, the first and the last not among them, in one of ORDERS."""
    between = count - 2
    if order == LOWER:
        return frozenset(range(1, skipped + 1))
    return frozenset(1 + (2 * i + 1) * between // (2 * skipped) for i in range(skipped))


def blocks_for(speedup: float, order: str, work: Sequence[float], rest: float) -> frozenset[int]:
    """The blocks to skip for a step that is `speedup` times as fast: of all numbers of blocks in
    that order, the one that comes nearest to it. A step reads `work` in each block and `rest`
    elsewhere. Raises GraftlineError where it cannot be had."""
    if order not in ORDERS:
        raise GraftlineError(f"order '{order}'{nearest(order, ORDERS)}; use {' or '.join(ORDERS)}")
    if not math.isfinite(speedup) or speedup <= 1:
        raise GraftlineError(f"a speed-up of {speedup:g} skips nothing; use one above 1")
    count, whole = len(work), sum(work) + rest
    ways = [ordered(count, n, order) for n in range(max(count - 1, 1))]
    gains = [whole / (whole - sum(work[b] for b in way)) for way in ways]
    if gains[-1] < speedup:
        most = f"at most {math.floor(100 * gains[-1]) / 100:g}"
        raise GraftlineError(
            f"a speed-up of {speedup:g} is more than skipping blocks of {count} gives; use {most}"
        )
    best = min(range(len(ways)), key=lambda n: abs(1 / gains[n] - 1 / speedup))
    return ways[max(best, 1)]


def text_of(blocks: Collection[int]) -> str:
    """Numbers of blocks as `blocks_of` reads them, runs as ranges."""
    runs: list[list[int]] = []
    for block in sorted(blocks):
        if runs and runs[-1][1] == block - 1:
            runs[-1][1] = block
        else:
            runs.append([block, block])
    return "+".join(str(a) if a == b else f"{a}-{b}" for a, b in runs)


def parse_skip(text: str, draft: str | None, own: bool) -> str:
    """The options of layer-skip that `--skip` means, beside `--draft` (`own`: of another
    checkpoint). Raises GraftlineError for what no model can have."""
    said = f"--skip {text}"
    if own:
        raise GraftlineError(
            f"{said} skips blocks of the target; --draft {draft} is another model, use --draft int8"
        )
    words = text.split(",")
    if "=" not in text:
        words = [f"layers={'+'.join(word.strip() for word in words)}"]
    names = [word.partition("=")[0].strip() for word in words]
    for name in names:
        if name not in PARTS or names.count(name) > 1:
            why = f"takes {', '.join(PARTS)}, each once, not '{name}'{nearest(name, PARTS)}"
            raise GraftlineError(f"{said}: {why}, {_HELP}")
    options = dict(zip(names, (word.partition("=")[2].strip() for word in words), strict=True))
    try:
        found = [blocks_of(value, MANY) for value in options.values()]
    except GraftlineError as error:
        raise GraftlineError(f"{said}: {error}, {_HELP}") from error
    if not all(found):
        raise GraftlineError(f"{said} names no block, {_HELP}")
    return ",".join(f"{name}={value}" for name, value in options.items())
