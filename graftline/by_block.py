"""The law `checkpoint` of a host that no session can hold here: block by block, each from the
stream that the checkpoint's own model has there.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from graftline.errors import LawBroken
from graftline.evaluate import Feed, oracle_limit, run
from graftline.law import LawRow
from graftline.models.reference import Own
from graftline.nearness import gaps
from graftline.passes.anchors import block_outputs
from graftline.passes.kv_cache import empty_caches
from graftline.passes.reduce_host import weight_bytes
from graftline.passes.tree_mask import causal_mask

GRAFT = "canonical"
QUIET = 2.0
"""Seconds between two lines of progress."""
Watch = Callable[[str], None]
Part = tuple[str, ir.Value | None, ir.Value, npt.NDArray[np.float32]]
"""What a part is called, the stream it reads (None: it reads the tokens), what it makes, and what
the checkpoint's own model has there."""


def by_block(
    canonical: ir.Model, tokens: npt.NDArray[np.int64], own: Own, most: float, say: Watch
) -> LawRow:
    """Every block, and the head, against the checkpoint's own model.

    `tokens` [N] are those that `own` answered; `most` is the largest difference of a number,
    relative to its row's largest. Raises LawBroken.
    """
    rows = len(tokens)
    feed: Feed = {"tokens": tokens[None], "positions": np.arange(rows)[None]}
    feed |= {"rows": np.arange(rows - len(own.logits), rows)[None]}
    start = np.zeros(1, np.int64)
    feed |= {"write_index": start, "mask": causal_mask(start, rows, rows)}
    feed |= empty_caches(canonical, 1, rows)
    parts = list(_parts(canonical.graph, own))
    if isinstance(parts[0], str):
        return LawRow(GRAFT, "checkpoint", "not_run", parts[0])
    worst, told = 0.0, time.monotonic()
    for place, part in enumerate(parts):
        assert not isinstance(part, str)
        if time.monotonic() - told > QUIET:
            told = time.monotonic()
            say(f"proof: {part[0]} of {len(parts) - 1} against the checkpoint's own model")
        found = _compare(canonical, part, feed, own, place - 1, most)
        if isinstance(found, str):
            return LawRow(GRAFT, "checkpoint", "not_run", found)
        worst = max(worst, found)
    what = (
        f"{len(parts) - 1} blocks and the head, {rows} rows each, against the checkpoint's own "
        "model, each from the stream it has there"
    )
    return LawRow(GRAFT, "checkpoint", "held", what, worst, most)


def _parts(graph: ir.Graph, own: Own) -> Iterator[Part | str]:
    """Every block and the head; or why they cannot be compared."""
    stream = block_outputs(graph)
    if sorted(block for block in own.stream if block >= 0) != list(range(len(stream))):
        yield "the checkpoint's own model does not show the stream between its blocks"
        return
    above: ir.Value | None = None
    for block, value in enumerate(stream):
        yield f"block {block}", above, value, own.stream[block]
        above = value
    yield "the head", above, next(v for v in graph.outputs if v.name == "logits"), own.logits


def _compare(
    host: ir.Model, part: Part, feed: Feed, own: Own, above: int, most: float
) -> float | str:
    """How far one part is from the checkpoint's own; or why it cannot be run."""
    name, start, end, expected = part
    inputs = [*host.graph.inputs, *([start] if start is not None else ())]
    graph = ir.convenience.extract(host.graph, inputs, [end])
    model = ir.Model(graph, ir_version=host.ir_version, functions=list(host.functions.values()))
    if (size := weight_bytes(model)) > (room := oracle_limit()):
        return f"{name} weighs {size / 1e9:.1f} GB, the oracle takes {room / 1e9:.1f} GB here"
    given = feed
    if start is not None:
        dtype = (start.dtype or ir.DataType.FLOAT).numpy()
        given = {**feed, start.name or "": own.stream[above][None].astype(dtype)}
    (got,) = run(model, given).values()
    rows = got[0][-len(expected) :]
    off = gaps(rows, expected) if rows.shape == expected.shape else np.asarray([np.inf])
    if not (worst := float(off.max())) <= most:
        by = f"{worst:.2g} of the row's largest number from it, above {most:.2g}"
        raise LawBroken(GRAFT, "checkpoint", f"{name}, row {int(off.argmax())}", by)
    return worst
