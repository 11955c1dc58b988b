"""gate-mlp: MLPs that a row passes by once one of them has hardly changed its residual stream."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from graftline.errors import NotApplicable
from graftline.passes.anchors.anchors import block_outputs
from graftline.passes.anchors.residual import Span, block_terms, spans, without_mlp
from graftline.passes.anchors.work import block_work, part_work
from graftline.passes.grafts.gate_similarity import chosen, reach_of, saves
from graftline.passes.graph.emit import Emit, new_output
from graftline.passes.graph.mismatch import Mismatch, refusal
from graftline.passes.graph.text import write
from graftline.passes.laws.gated import gated
from graftline.passes.pipeline.graft import BLOCK, ROLE, Graft, Law, WeightFreeLaw
from graftline.ports import GATE, SIMILARITY, SKIPPED, Port, read_ports, write_ports

SATURATED = """
  axis = Constant <value_ints = [-1]> ()
  products = Mul (mid, full)
  dot = ReduceSum (products, axis)
  length = ReduceL2 (mid, axis)
  full_length = ReduceL2 (full, axis)
  lengths = Mul (length, full_length)
  least = Mul (lengths, similarity)
  saturated = GreaterOrEqual (dot, least)
"""
"""Which rows [B, N, 1] an MLP turns by a cosine of `similarity` or more; without a division, so
that a row of zeros is no NaN."""
COUNT = """
  axis = Constant <value_ints = [-1]> ()
  each = Cast <to = 7> (states)
  skipped = ReduceSum <keepdims = 0> (each, axis)
"""


@dataclass(frozen=True)
class GateMlp(Graft):
    """Gates the MLPs between the first `first` and the last `last` blocks (FFN-SkipLLM, arXiv
    2404.03865): once an MLP there leaves a row of the residual stream in nearly the same direction,
    that row passes by the MLPs that follow.

    1. The similarity of an MLP is the cosine of the row without and with what it adds. Along the
       depth of a trained model it rises, so that the first one of at least `similarity` says that
       those behind it add little, too.
    2. The blocks at both ends, where it is low, always compute their MLP (the cold regions).
    3. Attention is computed in every block and every row: caches have no holes.
    4. A row is judged by itself, whatever rows share its step.

    With `speedup` 1.15 the similarity follows from a text that the host writes itself: the largest
    at which a row passes by so many MLPs, on average, that a step reads 1 / 1.15 of its numbers.

    Adds the output skipped [B, N] int64: how many MLPs each row passed by. Every MLP is still
    computed, and not used by the rows that pass by; `select-mlp-rows`, behind a backend's lowering,
    computes each for the rows that need it.

    Answers other logits than the host by design; its own law says which.
    """

    laws: ClassVar[tuple[Law, ...]] = (gated,)
    weight_free: ClassVar[tuple[WeightFreeLaw, ...]] = (saves,)
    numeric: ClassVar[bool] = False

    similarity: float = 0.99
    first: int = 2
    last: int = 2
    speedup: float = 0.0

    @property
    def calibrates(self) -> bool:
        return self.speedup > 0

    def region(self, model: ir.Model) -> range:
        """The blocks whose similarity counts; the MLPs of all but the first of them are gated."""
        return range(self.first, len(block_outputs(model.graph)) - self.last)

    def requires(self, model: ir.Model) -> None:
        count = len(block_outputs(model.graph))
        if not count:
            raise NotApplicable("gate-mlp needs stamped blocks; run anchors first")
        if not -1 < self.similarity < 1:
            raise NotApplicable(f"{self}: a similarity is a cosine; use one between -1 and 1")
        if self.speedup and self.similarity != GateMlp.similarity:
            raise NotApplicable(f"{self}: speedup chooses the similarity; give one of them")
        if min(self.first, self.last) < 0 or len(self.region(model)) < 2:
            raise NotApplicable(
                f"{self}: of {count} blocks, without the first {self.first} and the last "
                f"{self.last}, fewer than two are left to gate; use a smaller first or last"
            )
        if SIMILARITY in model.graph.initializers:
            raise NotApplicable(f"{self}: the MLPs of this graph are gated already")
        found = spans(model.graph)
        if isinstance(found, Mismatch):
            raise refusal("gate-mlp finds no single residual stream", [found])
        for span in found[self.first : count - self.last]:
            if isinstance(terms := block_terms(span), Mismatch):
                what = f"gate-mlp cannot gate the MLP of block {span.block}"
                raise refusal(f"{what}; leave the block out by first or last", [terms])

    def apply(self, model: ir.Model) -> None:
        graph, states = model.graph, list[ir.Value]()
        found = spans(graph)
        assert not isinstance(found, Mismatch), "was found when the graph was looked at"
        region = self.region(model)
        # all of them before the first gate comes between two blocks
        mids = [(span, self._mid(graph, span)) for span in found[region.start : region.stop]]
        similarity = self._similarity(model, mids)
        for span, mid in mids:
            self._gate(graph, span.end, mid, states, None if span is mids[-1][0] else similarity)
        emit = Emit(graph, self.name(), None, block=SKIPPED)
        joined = emit.op("Concat", states, axis=-1)
        (skipped,) = write(emit, COUNT, {"states": joined}, ["skipped"], [SKIPPED])
        new_output(graph, skipped, SKIPPED, ir.DataType.INT64, ["B", "N"])
        port = Port(SKIPPED, SKIPPED, "out", "int64", ("B", "N"), compare="equal")
        write_ports(model, [*read_ports(model), port])

    def _mid(self, graph: ir.Graph, span: Span) -> ir.Value:
        """The stream of a block without its MLP."""
        terms = block_terms(span)
        assert not isinstance(terms, Mismatch), "was found when the graph was looked at"
        return without_mlp(span, terms, Emit(graph, self.name(), span.end.producer()))

    def _similarity(self, model: ir.Model, mids: Sequence[tuple[Span, ir.Value]]) -> float:
        """Its own, or the one that the speed-up needs."""
        if not self.speedup:
            return self.similarity
        each, head = block_work(model.graph)
        works = [self._work(span) for span, _ in mids[1:]]
        return chosen(
            self, reach_of(self, model, mids, np.asarray(works) / (sum(each) + head)), self.speedup
        )

    def _work(self, span: Span) -> int:
        """Numbers in the matrices of a block's MLP."""
        terms = block_terms(span)
        assert not isinstance(terms, Mismatch), "was found when the graph was looked at"
        return part_work(span, terms, terms.mlp)

    def _gate(
        self,
        graph: ir.Graph,
        full: ir.Value,
        mid: ir.Value,
        states: list[ir.Value],
        similarity: float | None,
    ) -> None:
        """Judge the MLP of a block, but for the last, which has no `similarity`; and let the rows
        of the last of `states` pass it by."""
        maker, readers = full.producer(), list(full.uses())
        assert maker is not None, "a block ends in a sum"
        emit = Emit(graph, self.name(), _behind(graph, maker), block=maker.metadata_props[BLOCK])
        before = states[-1] if states else None
        if similarity is not None:
            dtype = (full.dtype or ir.DataType.FLOAT).numpy()
            least = emit.const(SIMILARITY, similarity, dtype)
            given = {"mid": mid, "full": full, "similarity": least}
            (state,) = write(emit, SATURATED, given, ["saturated"])
            states.append(state if before is None else emit.op("Or", [before, state]))
        if before is None:
            return
        passed = emit.op("Where", [before, mid, full])
        passed.shape, passed.type = full.shape, full.type
        node = passed.producer()
        assert node is not None, "it was made here"
        node.metadata_props[GATE] = maker.metadata_props[BLOCK]
        node.metadata_props[ROLE] = maker.metadata_props.pop(ROLE)
        for user, index in readers:
            user.replace_input_with(index, passed)

    def apart(self, before: ir.Model) -> dict[int, str]:
        first, *between, last = self.region(before)
        return {first: "judges", last: "passes", **dict.fromkeys(between, "both")}

    def within(self, blocks: int) -> GateMlp:
        """Gates of a small host every MLP but the first."""
        return GateMlp(self.similarity, first=0, last=0)


def _behind(graph: ir.Graph, node: ir.Node) -> ir.Node | None:
    """The node that follows another; None behind the last."""
    place = graph.index(node) + 1
    return graph[place] if place < len(graph) else None
