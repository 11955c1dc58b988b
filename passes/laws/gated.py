"""The law `gated`: rows that pass by MLPs, held to what the method says of the host itself."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Protocol, cast

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from graftline.errors import LawBroken
from graftline.evaluate import Array, Feed
from graftline.facts import decoder_facts
from graftline.law import Evidence
from graftline.passes.anchors.anchors import block_outputs
from graftline.passes.anchors.residual import Span, Terms, block_terms, spans, without_mlp
from graftline.passes.graph.cut import hand_over, keep_outputs
from graftline.passes.graph.emit import Emit, new_input, new_output
from graftline.passes.graph.mismatch import Mismatch
from graftline.passes.graph.weights import tensor_of
from graftline.passes.laws.compare import Comparison, activation_dtype, written_slots
from graftline.passes.pipeline.graft import Evaluate, Graft
from graftline.ports import SIMILARITY, SKIPPED, Port, read_ports

NEVER, ALWAYS = 2.0, -2.0
"""Similarities that no MLP reaches, and that every one does."""
TIE = 1e-5
"""Cosines nearer to a similarity than this may fall either way, by how sums are rounded."""
ENTERS, MID, FULL = "stream", "stream.mid", "stream.full"
"""The stream where the law takes a host apart: as it enters a block, without what the block's MLP
adds, and with it."""
Bools = npt.NDArray[np.bool_]
Judge = Callable[[int, Array], Bools]
"""judge(place, cosines [B, N]): the rows that the MLP of that place in the region saturates."""


class Gates(Protocol):
    """A graft that gates MLPs."""

    @property
    def similarity(self) -> float:
        """The least cosine of a saturated row."""
        ...

    @property
    def speedup(self) -> float:
        """What the similarity follows from in place of that; 0: nothing."""
        ...

    def region(self, model: ir.Model) -> range:
        """The blocks whose similarity counts; the MLPs of all but the first of them are gated."""
        ...


@dataclass(frozen=True)
class Passed:
    """What a host answers where rows pass by MLPs, how many each row passed by [B, N], and the
    cosines of all MLPs of the region [places, B, N]."""

    outputs: Feed
    skipped: npt.NDArray[np.int64]
    cosines: Array


def gated(
    graft: Graft, before: ir.Model, after: ir.Model, feed: Feed, evaluate: Evaluate
) -> Evidence:
    """With any similarity in place of its own the graph gives what the host gives where rows pass
    by the MLPs behind the first one of that similarity: none, all, and one that some rows reach."""
    gates = cast(Gates, graft)
    own = similarity_of(after)
    if not gates.speedup and not np.isclose(own, gates.similarity, rtol=1e-3, atol=0):
        by = f"is {own:g} in the graph, not {gates.similarity:g}"
        raise LawBroken(graft.name(), "gated", "the similarity", by)
    region, ports = gates.region(before), read_ports(after)
    comparison, worst = Comparison(graft.name(), "gated", activation_dtype(after)), 0.0
    none = passed_by(before, region, at_least(NEVER), feed, evaluate)
    some, parted = _parted(before, region, none.cosines[0], feed, evaluate)
    every = passed_by(before, region, at_least(ALWAYS), feed, evaluate)
    for similarity, found in ((NEVER, none), (some, parted), (ALWAYS, every)):
        got = evaluate(with_similarity(after, similarity), graft.neutral(feed, after))
        expected = {**found.outputs, SKIPPED: found.skipped}
        got, expected = (written_slots(side, ports, feed) for side in (got, expected))
        worst = max(worst, comparison.outputs(got, expected, ports))
    what = f"rows pass by 0 to {len(region) - 1} MLPs and give what the host gives without them"
    return Evidence(what, worst, comparison.limit)


def at_least(similarity: float) -> Judge:
    """Rows of that cosine, as the method has it."""
    return lambda place, cosines: cosines >= similarity


def _parted(
    host: ir.Model, region: range, cosines: Array, feed: Feed, evaluate: Evaluate
) -> tuple[float, Passed]:
    """A similarity that some rows reach at the first MLP of the region and others do not, with no
    cosine so near to it that rounding decides; and what the host answers there."""
    for similarity in _between(cosines):
        found = passed_by(host, region, at_least(similarity), feed, evaluate)
        if np.abs(found.cosines - similarity).min() > TIE:
            return similarity, found
    raise LawBroken("gate-mlp", "gated", "rows of the feed", "are all alike: nothing to compare")


def parting_similarity(
    who: str, law: str, gated: ir.Model, feed: Feed, evaluate: Evaluate
) -> float:
    """Such a similarity of a graph whose MLPs are gated, by the cosines that it judges them by
    itself. Raises LawBroken of that pass and law where there is none."""
    for similarity in _between(_judged(gated, NEVER, feed, evaluate)[0]):
        if np.abs(_judged(gated, similarity, feed, evaluate) - similarity).min() > TIE:
            return similarity
    raise LawBroken(who, law, "rows of the feed", "are all alike: nothing to compare")


def _between(cosines: Array) -> Iterator[float]:
    """Similarities that some of these cosines reach and others do not, those that are farthest
    from all of them first."""
    gaps = pairwise(np.unique(cosines).tolist())
    for low, high in sorted(gaps, key=lambda pair: pair[0] - pair[1]):
        yield (low + high) / 2


def _judged(gated: ir.Model, similarity: float, feed: Feed, evaluate: Evaluate) -> Array:
    """The cosines [places, B, N] of all rows that a gated graph judges MLPs by, in its order,
    where the similarity is another than its own."""
    part = with_similarity(gated, similarity)
    values = [v for judge in _judges(part.graph) for v in judge.inputs if v is not None]
    names = [f"judged.{place}" for place in range(len(values))]
    for name, value in zip(names, values, strict=True):
        read = Emit(part.graph, "gated", None).op("Identity", [value])
        new_output(part.graph, read, name, value.dtype or ir.DataType.FLOAT, ["B", "N", 1])
    keep_outputs(part, names)
    found = evaluate(part, feed)
    sides = [found[name][..., 0].astype(np.float64) for name in names]
    pairs = zip(sides[::2], sides[1::2], strict=True)
    return np.stack([dot * similarity / least for dot, least in pairs])


def _judges(graph: ir.Graph) -> list[ir.Node]:
    """The nodes that compare rows with the similarity, in order."""
    reached = {graph.initializers[SIMILARITY]}
    judges = list[ir.Node]()
    for node in graph:
        if reached & set(node.inputs):
            if node.op_type == "GreaterOrEqual":
                judges.append(node)
            else:
                reached.update(node.outputs)
    return judges


def passed_by(
    host: ir.Model, region: range, judge: Judge, feed: Feed, evaluate: Evaluate
) -> Passed:
    """What a host answers where a row passes by the MLPs of `region` behind the first that `judge`
    says saturates it, computed without rewiring it: the stream is read around each MLP, and what
    the method leaves of it is fed in behind."""
    found = _part(host, None, region.start, None, feed, evaluate)
    mid, full = found.pop(MID), found.pop(FULL)
    cosines, outputs, stream = [cosines_of(mid, full)], found, full
    out, skipped = judge(0, cosines[0]), np.zeros(mid.shape[:2], np.int64)
    for place, (behind, block) in enumerate(pairwise([*region, None]), 1):
        assert behind is not None, "None stands behind the last block alone"
        found = _part(host, behind, block, stream, feed, evaluate)
        if block is not None:
            mid, full = found.pop(MID), found.pop(FULL)
            cosines.append(cosines_of(mid, full))
            stream, skipped = np.where(out[..., None], mid, full), skipped + out
            out = out | judge(place, cosines[-1])
        outputs |= found
    return Passed(outputs, skipped, np.stack(cosines))


def _part(
    host: ir.Model,
    behind: int | None,
    block: int | None,
    stream: Array | None,
    feed: Feed,
    evaluate: Evaluate,
) -> Feed:
    """What the blocks from the one behind `behind` to `block` answer, and the stream around the
    MLP of `block`; without it all that is left."""
    part = host.clone()
    names = [p.name for p in read_ports(host) if _is_within(p, behind, block)]
    width = ["B", "N", decoder_facts(host).hidden]
    if block is not None:
        span, terms = _block(part.graph, block)
        mid = without_mlp(span, terms, Emit(part.graph, "gated", None))
        for name, value in ((MID, mid), (FULL, span.end)):
            read = Emit(part.graph, "gated", None).op("Identity", [value])
            new_output(part.graph, read, name, value.dtype or ir.DataType.FLOAT, width)
            names.append(name)
    fed = dict(feed)
    if behind is not None and stream is not None:
        end = block_outputs(part.graph)[behind]
        given = new_input(part.graph, ENTERS, end.dtype or ir.DataType.FLOAT, width)
        hand_over(end, given)
        fed[ENTERS] = stream
    keep_outputs(part, names)
    return evaluate(part, fed)


def _is_within(port: Port, behind: int | None, block: int | None) -> bool:
    """Whether a part answers an output: caches of its own blocks, and of what is read of the
    stream that leaves a block all but its last, which passes by its MLP first."""
    if port.direction != "out":
        return False
    if port.layer is None:
        return block is None
    first = -1 if behind is None else behind
    if port.state:
        return first < port.layer and (block is None or port.layer <= block)
    return first <= port.layer and (block is None or port.layer < block)


def _block(graph: ir.Graph, block: int) -> tuple[Span, Terms]:
    found = spans(graph)
    assert not isinstance(found, Mismatch), "was found when the graph was looked at"
    span = next(one for one in found if one.block == block)
    terms = block_terms(span)
    assert not isinstance(terms, Mismatch), "was found when the graph was looked at"
    return span, terms


def with_similarity(model: ir.Model, similarity: float) -> ir.Model:
    """A copy of a gated graph with another similarity in place of its own."""
    copy = model.clone()
    value = copy.graph.initializers[SIMILARITY]
    array = np.asarray(similarity, tensor_of(value).dtype.numpy())
    value.const_value = ir.tensor(array, name=SIMILARITY)
    return copy


def similarity_of(model: ir.Model) -> float:
    """The similarity in a gated graph."""
    return float(tensor_of(model.graph.initializers[SIMILARITY]).numpy())


def cosines_of(mid: Array, full: Array) -> Array:
    """The cosine of each row [B, N] of two streams, in double precision."""
    one, other = mid.astype(np.float64), full.astype(np.float64)
    lengths = np.linalg.norm(one, axis=-1) * np.linalg.norm(other, axis=-1)
    return (one * other).sum(-1) / np.maximum(lengths, np.finfo(np.float64).tiny)
