"""best-path: the path of a graph of vertices, found within the graph, and what lies on it."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import ClassVar, get_args

import numpy as np
import onnx_ir as ir

from graftline.errors import NotApplicable, nearest
from graftline.evaluate import Feed
from graftline.facts import DagRecogniserFacts, read_facts, write_facts
from graftline.owners import TARGET
from graftline.passes.anchors.roles import dims_of
from graftline.passes.graph.emit import Emit, new_output
from graftline.passes.graph.ports import output_of
from graftline.passes.graph.text import write
from graftline.passes.laws.paths import OF_VERTICES, VERTEX, found_on, paths
from graftline.passes.pipeline.graft import Evaluate, Graft, Law
from graftline.path_search import PathSearch, Search
from graftline.ports import Port, read_ports, write_ports
from graftline.roles import COUNTS, SCORES, STATES, TRANSITIONS, VERTICES

SEARCHES: tuple[Search, ...] = get_args(Search)
DOUBLINGS = 16
"""Of a walk over as many vertices as a signal has places for: the transitions of one row of 2 ** 16
vertices take 17 GB."""
_NEXT = """
    count = Shape <start = 1, end = 2> (scores)
    rows = Shape <start = 0, end = 1> (scores)
    chance = ReduceMax <keepdims = 0> (LogSoftmax <axis = -1> (scores), last_axis)
    token = ArgMax <axis = -1, keepdims = 0> (scores)
    likely = Add (transitions, Unsqueeze (Mul (chance, beta), axis_1))
    onward = ArgMax <axis = -1, keepdims = 0> (likely)
    place = Range (zero, Squeeze (count, axis_0), one)
    step0 = Where (GreaterOrEqual (place, end), end, onward)
    walk0 = Expand (zero, Concat <axis = 0> (rows, one_1))
"""
"""The vertex after each, and where a walk begins: the last follows itself."""
_ALL = "end = Reshape (Sub (Shape <start = 1, end = 2> (scores), one_1), one_by_one)"
_EACH = "end = Sub (Unsqueeze (vertices, axis_1), one)"
_DOUBLED = """
    far{n} = GatherElements <axis = 1> (step{m}, walk{m})
    walk{n} = Slice (Concat <axis = 1> (walk{m}, far{n}), zero_1, count, axis_1)
    step{n} = GatherElements <axis = 1> (step{m}, step{m})
"""
"""A walk twice as long: every vertex of it, and the one that lies as far behind as it is long."""
_KEPT = """
    before = Slice (walk{n}, zero_1, minus_1, axis_1)
    at = Slice (walk{n}, one_1, count, axis_1)
    said = GatherElements <axis = 1> (token, at)
    same = Equal (said, GatherElements <axis = 1> (token, before))
    passed = Or (Or (Equal (before, end), same), Equal (said, pad))
    kept = Cast <to = 7> (Not (passed))
    rank = CumSum (kept, one)
    counts = ReduceSum <keepdims = 0> (kept, axis_1)
    most = Max (ReduceMax <keepdims = 0> (counts), one)
    position = Range (zero, most, one)
    earlier = LessOrEqual (Unsqueeze (rank, axis_1), Unsqueeze (position, axis_1))
    steps = ReduceSum <keepdims = 0> (Cast <to = 7> (earlier), axis_2)
    index = Min (steps, Squeeze (Sub (count, two), axis_0))
    path = Unsqueeze (GatherElements <axis = 1> (at, index), axis_2)
    own = Less (position, Unsqueeze (counts, axis_1))
    on_path = GatherND <batch_dims = 1> (states, path)
    held = Mul (on_path, CastLike (Unsqueeze (own, axis_2), on_path))
    chosen = GatherND <batch_dims = 1> (scores, path)
"""
"""Position u is where as many steps of the walk as have kept no more than u vertices end."""


@dataclass(frozen=True)
class BestPath(Graft):
    """Finds the path through a DA-Transformer's vertices within the graph (DASpeech, arXiv
    2310.07403), and gives the scores and states of those on it alone.

    The walk from the first vertex to the last is doubled until it is as long as there are vertices:
    no loop. `by`, `beta` and `pad` are as of graftline.path_search. Adds the output counts [B],
    the positions of each row. Neutral: the host's vertices on the path that the plain form finds.
    """

    laws: ClassVar[tuple[Law, ...]] = (paths,)

    by: str = "lookahead"
    beta: float = 1.0
    pad: int = -1

    @property
    def search(self) -> PathSearch:
        """As facts have it. Raises NotApplicable for what is not known."""
        by: Search | None = next((name for name in SEARCHES if name == self.by), None)
        if by is None:
            raise NotApplicable(f"{self}: unknown search '{self.by}'{nearest(self.by, SEARCHES)}")
        if not 0 <= self.beta < math.inf:
            raise NotApplicable(f"{self}: beta must be 0 or more")
        return PathSearch(by, self.beta, self.pad)

    def requires(self, model: ir.Model) -> None:
        scores, transitions = output_of(model, SCORES), output_of(model, TRANSITIONS)
        if scores is None or transitions is None:
            raise NotApplicable(
                f"{self.name()} needs a recogniser that scores transitions between its positions"
            )
        facts = read_facts(model)
        assert isinstance(facts, DagRecogniserFacts)
        if not -1 <= self.pad < facts.vocabulary:
            raise NotApplicable(f"{self}: pad must be a token, 0 to {facts.vocabulary - 1}, or -1")
        if scores.dtype != transitions.dtype:
            raise NotApplicable(
                f"{self.name()}: scores and transitions are of two types", [transitions.name or ""]
            )
        assert self.search

    def apply(self, model: ir.Model) -> None:
        graph, facts = model.graph, read_facts(model)
        assert isinstance(facts, DagRecogniserFacts)
        ports = [p for p in read_ports(model) if not _of_vertices(p)]
        found = {role: output_of(model, role) for role in OF_VERTICES}
        values = {role: value for role, value in found.items() if value is not None}
        for role, value in values.items():
            graph.outputs.remove(value)
            value.name = f"{VERTEX}.{role}"
        made = self._written(graph, values)
        for role, value in zip((SCORES, STATES, COUNTS), made, strict=True):
            dims, kind = dims_of(values[SCORES])[:1], ir.DataType.INT64
            if role in values:
                dims, kind = (*dims, "U", dims_of(values[role])[2]), values[role].dtype
            assert kind is not None
            shape = tuple(d if isinstance(d, int) else str(d) for d in dims)
            new_output(graph, value, role, kind, shape)
            ports.append(Port(role, role, "out", kind.numpy().name, shape))
        write_ports(model, ports)
        write_facts(model, replace(facts, search=self.search))
        graph.sort()

    def _written(self, graph: ir.Graph, values: dict[str, ir.Value]) -> list[ir.Value]:
        """Scores, states and counts of the positions of the path."""
        emit, scores = Emit(graph, self.name()), values[SCORES]
        assert scores.dtype is not None
        long = dims_of(scores)[1]
        doublings = math.ceil(math.log2(max(2, long))) if isinstance(long, int) else DOUBLINGS
        text = [_EACH if VERTICES in values else _ALL, _NEXT]
        text += [_DOUBLED.format(n=n + 1, m=n) for n in range(doublings)]
        text.append(_KEPT.format(n=doublings))
        given = dict(values)
        given |= {
            "beta": emit.const("beta", np.asarray(self.beta, scores.dtype.numpy())),
            "pad": emit.const("pad", self.pad, np.int64),
            "one_by_one": emit.const("one.by.one", [1, 1], np.int64),
            "zero_1": emit.const("zero.1", [0], np.int64),
            "minus_1": emit.const("minus.1", [-1], np.int64),
        }
        if VERTICES in values:
            given[VERTICES] = emit.op("Cast", [values[VERTICES]], to=ir.DataType.INT64.value)
        return write(emit, "\n".join(text), given, ["chosen", "held", "counts"])

    def dropped(self, before: ir.Model) -> frozenset[str]:
        return frozenset({TRANSITIONS, VERTICES})

    def reference(self, before: ir.Model, feed: Feed, evaluate: Evaluate) -> Feed:
        """The host's scores and states of the vertices on the path, which the plain form finds.
        Raises LawBroken where its transitions are no chances of going on."""
        made = evaluate(before, feed)
        return made | found_on(self.name(), made, self.search)


def _of_vertices(port: Port) -> bool:
    return (port.direction, port.owner) == ("out", TARGET) and port.role in OF_VERTICES
