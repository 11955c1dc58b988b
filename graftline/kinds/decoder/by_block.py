"""The law `checkpoint` of a host that no session can hold here: block by block, each from the
stream that the checkpoint's own model has there.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from graftline.errors import LawBroken
from graftline.evaluate import Feed, oracle_limit, run
from graftline.law import LawRow
from graftline.models.reference import QUIET, Floats, Own, Watch
from graftline.nearness import gaps
from graftline.passes.anchors.anchors import block_outputs
from graftline.passes.anchors.reduce import weight_bytes
from graftline.passes.grafts.kv_cache import empty_caches
from graftline.passes.grafts.tree_mask import causal_mask
from graftline.passes.graph.ports import output_of, roles_of

GRAFT = "canonical"


@dataclass(frozen=True)
class Part:
    """A block or the head: the stream it reads and its values there (None: it reads the tokens),
    what it makes, and what the checkpoint's own model makes there."""

    name: str
    start: ir.Value | None
    given: Floats | None
    end: ir.Value
    expected: Floats


def by_block(
    canonical: ir.Model, tokens: npt.NDArray[np.int64], own: Own, most: float, say: Watch
) -> LawRow:
    """Every block, and the head, against the checkpoint's own model.

    `tokens` [N] are those that `own` answered; `most` is the largest difference of a number,
    relative to its row's largest. Raises LawBroken.
    """
    rows = len(tokens)
    start, every = np.zeros(1, np.int64), np.arange(rows)[None]
    feed = roles_of(canonical).feed(
        tokens=tokens[None], positions=every, rows=every[:, rows - len(own.logits) :],
        write_index=start, mask=causal_mask(start, rows, rows),
    )  # fmt: skip
    feed |= empty_caches(canonical, 1, rows)
    stream = block_outputs(canonical.graph)
    if sorted(block for block in own.stream if block >= 0) != list(range(len(stream))):
        why = "the checkpoint's own model does not show the stream between its blocks"
        return LawRow(GRAFT, "checkpoint", "not_run", why)
    worst, told = 0.0, time.monotonic()
    for part in _parts(canonical, stream, own):
        if time.monotonic() - told > QUIET:
            told = time.monotonic()
            say(f"proof: {part.name} of {len(stream)} against the checkpoint's own model")
        found = _compare(canonical, part, feed, most)
        if isinstance(found, str):
            return LawRow(GRAFT, "checkpoint", "not_run", found)
        worst = max(worst, found)
    what = (
        f"{len(stream)} blocks and the head, {rows} rows each, against the checkpoint's own "
        "model, each from the stream it has there"
    )
    return LawRow(GRAFT, "checkpoint", "held", what, worst, most)


def _parts(model: ir.Model, stream: Sequence[ir.Value], own: Own) -> Iterator[Part]:
    above: ir.Value | None = None
    given: Floats | None = None
    for block, value in enumerate(stream):
        yield Part(f"block {block}", above, given, value, own.stream[block])
        above, given = value, own.stream[block]
    logits = output_of(model, "logits")
    assert logits is not None, "a canonical graph has logits"
    yield Part("the head", above, given, logits, own.logits)


def _compare(host: ir.Model, part: Part, feed: Feed, most: float) -> float | str:
    """How far one part is from the checkpoint's own; or why it cannot be run."""
    inputs, values = list(host.graph.inputs), dict(feed)
    if part.start is not None and part.given is not None:
        assert part.start.name is not None
        assert part.start.dtype is not None
        inputs.append(part.start)
        values[part.start.name] = part.given[None].astype(part.start.dtype.numpy())
    graph = ir.convenience.extract(host.graph, inputs, [part.end])
    model = ir.Model(graph, ir_version=host.ir_version, functions=list(host.functions.values()))
    if (size := weight_bytes(model)) > (room := oracle_limit()):
        return f"{part.name} weighs {size / 1e9:.1f} GB, the oracle takes {room / 1e9:.1f} GB here"
    (got,) = run(model, values).values()
    rows = got[0][-len(part.expected) :]
    same = rows.shape == part.expected.shape
    off = gaps(rows, part.expected) if same else np.asarray([np.inf])
    if not (worst := float(off.max())) <= most:
        by = f"{worst:.2g} of the row's largest number from it, above {most:.2g}"
        raise LawBroken(GRAFT, "checkpoint", f"{part.name}, row {int(off.argmax())}", by)
    return worst
