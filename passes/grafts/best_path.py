"""best-path: the path of a graph of vertices, found within the graph, and what lies on it."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import ClassVar, get_args

import onnx_ir as ir

from graftline.errors import NotApplicable, nearest
from graftline.evaluate import Feed
from graftline.facts import DagRecogniserFacts, read_facts, write_facts
from graftline.owners import TARGET
from graftline.passes.anchors.roles import dims_of
from graftline.passes.grafts.path_text import written
from graftline.passes.graph.emit import Emit, new_output
from graftline.passes.graph.ports import output_of
from graftline.passes.laws.paths import OF_VERTICES, VERTEX, found_on, paths
from graftline.passes.pipeline.graft import Evaluate, Graft, Law
from graftline.path_search import PathSearch, Search
from graftline.ports import Port, read_ports, write_ports
from graftline.roles import COUNTS, SCORES, STATES, TRANSITIONS, VERTICES

SEARCHES: tuple[Search, ...] = get_args(Search)
MOST = 1024
"""Vertices of the longest path that joint-viterbi may look for: each is eleven nodes."""


@dataclass(frozen=True)
class BestPath(Graft):
    """Finds the path through a DA-Transformer's vertices within the graph (DASpeech, arXiv
    2310.07403), and gives the scores and states of those on it alone.

    Options are as of graftline.path_search. The walk of `lookahead` is doubled until it is as long
    as there are vertices; `joint-viterbi` is written out for `longest` vertices: no loop. Adds the
    output counts [B], the positions of each row. Neutral: the host's vertices on the path that the
    plain form finds.
    """

    laws: ClassVar[tuple[Law, ...]] = (paths,)

    by: str = "lookahead"
    beta: float = 1.0
    pad: int = -1
    penalty: float = 1.0
    longest: int = 64

    @property
    def search(self) -> PathSearch:
        """As facts have it. Raises NotApplicable for what is not known."""
        by: Search | None = next((name for name in SEARCHES if name == self.by), None)
        if by is None:
            raise NotApplicable(f"{self}: unknown search '{self.by}'{nearest(self.by, SEARCHES)}")
        if not 0 <= self.beta < math.inf:
            raise NotApplicable(f"{self}: beta must be 0 or more")
        own = PathSearch(by, self.beta, self.pad, self.penalty, self.longest)
        usual = PathSearch(by, self.beta, self.pad)
        if by == "lookahead" and own != usual:
            raise NotApplicable(f"{self}: penalty and longest are of by=joint-viterbi")
        if not 0 <= self.penalty < math.inf:
            raise NotApplicable(f"{self}: penalty must be 0 or more")
        if not 1 <= self.longest <= MOST:
            raise NotApplicable(f"{self}: longest must be 1 to {MOST} vertices")
        return own

    def requires(self, model: ir.Model) -> None:
        scores, transitions = output_of(model, SCORES), output_of(model, TRANSITIONS)
        if scores is None or transitions is None:
            raise NotApplicable(
                f"{self.name()} needs a recogniser that scores transitions between its positions"
            )
        facts = read_facts(model)
        assert isinstance(facts, DagRecogniserFacts)
        if not -1 <= self.search.pad < facts.vocabulary:
            raise NotApplicable(f"{self}: pad must be a token, 0 to {facts.vocabulary - 1}, or -1")
        if scores.dtype != transitions.dtype:
            raise NotApplicable(
                f"{self.name()}: scores and transitions are of two types", [transitions.name or ""]
            )

    def apply(self, model: ir.Model) -> None:
        graph, facts = model.graph, read_facts(model)
        assert isinstance(facts, DagRecogniserFacts)
        ports = [p for p in read_ports(model) if not _of_vertices(p)]
        found = {role: output_of(model, role) for role in OF_VERTICES}
        values = {role: value for role, value in found.items() if value is not None}
        for role, value in values.items():
            graph.outputs.remove(value)
            value.name = f"{VERTEX}.{role}"
        made = written(Emit(graph, self.name()), values, self.search)
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

    def dropped(self, before: ir.Model) -> frozenset[str]:
        return frozenset({TRANSITIONS, VERTICES})

    def reference(self, before: ir.Model, feed: Feed, evaluate: Evaluate) -> Feed:
        """The host's scores and states of the vertices on the path, which the plain form finds.
        Raises LawBroken where its transitions are no chances of going on."""
        made = evaluate(before, feed)
        return made | found_on(self.name(), made, self.search)


def _of_vertices(port: Port) -> bool:
    return (port.direction, port.owner) == ("out", TARGET) and port.role in OF_VERTICES
