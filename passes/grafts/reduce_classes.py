"""reduce-classes: the class of each place in the graph, so that few numbers are handed over."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import onnx_ir as ir

from graftline.errors import NotApplicable, nearest
from graftline.evaluate import Feed
from graftline.facts import QueryDecoderFacts, read_facts
from graftline.passes.graph.emit import Emit
from graftline.passes.graph.ports import output_of
from graftline.passes.laws.classes import SCORED, best_classes, first_largest
from graftline.passes.pipeline.graft import Evaluate, Graft, Law
from graftline.ports import Port, read_ports, write_ports
from graftline.roles import CLASSES, SCORES

MOST = {"uint8": 1 << 8, "int32": 1 << 31}
"""Classes that a type can number."""


@dataclass(frozen=True)
class ReduceClasses(Graft):
    """Gives the class of each place, [B, X, Y, Z] or [B, H, W], in place of the scores of all K: K
    times fewer numbers, the first of the largest scores.

    `dtype` is theirs, uint8 or int32; none: uint8 for up to 256 classes. It adds no input. Neutral:
    the best class of the host's scores.
    """

    laws: ClassVar[tuple[Law, ...]] = (first_largest,)

    dtype: str = ""

    def requires(self, model: ir.Model) -> None:
        facts = read_facts(model)
        if not isinstance(facts, QueryDecoderFacts):
            raise NotApplicable(
                f"{self.name()}: a {facts.kind} has no scores of places, as a query-decoder has"
            )
        if output_of(model, SCORES) is None:
            raise NotApplicable(f"{self.name()}: the scores are already reduced", [CLASSES])
        kind = self.kind(facts.classes)
        if kind not in MOST:
            raise NotApplicable(f"{self}: unknown dtype '{kind}'{nearest(kind, MOST)}")
        if facts.classes > MOST[kind]:
            raise NotApplicable(
                f"{self}: {kind} numbers {MOST[kind]} classes, and the host has {facts.classes}"
            )

    def kind(self, classes: int) -> str:
        """The type of so many classes' numbers."""
        return self.dtype or next(name for name, most in MOST.items() if classes <= most)

    def apply(self, model: ir.Model) -> None:
        graph, facts, scores = model.graph, read_facts(model), output_of(model, SCORES)
        assert isinstance(facts, QueryDecoderFacts)
        assert scores is not None
        kind = self.kind(facts.classes)
        dtype = ir.DataType[kind.upper()]
        place = graph.outputs.index(scores)
        scores.name = SCORED
        emit = Emit(graph, self.name())
        best = emit.op("ArgMax", [scores], axis=1, keepdims=0)
        classes = emit.op("Cast", [best], to=dtype)
        (port,) = (p for p in read_ports(model) if p.role == SCORES and p.direction == "out")
        shape = (port.shape[0], *port.shape[2:])
        classes.name = CLASSES
        classes.shape, classes.type = ir.Shape(list(shape)), ir.TensorType(dtype)
        graph.outputs[place] = classes
        made = replace(port, name=CLASSES, role=CLASSES, dtype=kind, shape=shape, compare="equal")
        write_ports(model, [made if p == port else p for p in read_ports(model)])

    def dropped(self, before: ir.Model) -> frozenset[str]:
        return frozenset(_scores(before))

    def reference(self, before: ir.Model, feed: Feed, evaluate: Evaluate) -> Feed:
        """The best class of each place by the host's scores."""
        made, facts = evaluate(before, feed), read_facts(before)
        assert isinstance(facts, QueryDecoderFacts)
        (scores,) = _scores(before)
        return made | {CLASSES: best_classes(made[scores]).astype(self.kind(facts.classes))}


def _scores(model: ir.Model) -> list[str]:
    """The name of the scores' output."""
    ports: tuple[Port, ...] = read_ports(model)
    return [p.name for p in ports if p.role == SCORES and p.direction == "out"]
