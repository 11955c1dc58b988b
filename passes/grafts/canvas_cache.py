"""canvas-cache: a masked generator's step computes some positions, and keeps what the others are
attended to by.

ReCAP (Liu et al., "Plug-and-Play Context Feature Reuse for Efficient Masked Generation",
arXiv 2505.19089).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from graftline.errors import NotApplicable, RequestError
from graftline.evaluate import Array, Feed
from graftline.facts import CanvasFacts, read_facts, write_facts
from graftline.filling import Filling
from graftline.law import Evidence
from graftline.passes.anchors.canvas.follow import canvas_rows
from graftline.passes.anchors.canvas.rows import CanvasRows
from graftline.passes.grafts.chosen_rows import ChosenRows
from graftline.passes.graph.emit import drop_unused, new_input
from graftline.passes.graph.meaning import label_value
from graftline.passes.graph.mismatch import Mismatch, refusal
from graftline.passes.graph.ports import port_of, value_of
from graftline.passes.laws.common import infer_shapes
from graftline.passes.laws.compare import Comparison, activation_dtype
from graftline.passes.pipeline.graft import Evaluate, Graft, Law
from graftline.ports import Port, by_role, read_ports, write_ports
from graftline.roles import CANVAS, CHOSEN, KEPT, SCORES

POISON = 1e3
"""What is kept before anything was computed in a law's feed: finite, large, and never to be seen.
"""


def kept_features(
    graft: Graft, before: ir.Model, after: ir.Model, feed: Feed, evaluate: Evaluate
) -> Evidence:
    """A step of some positions, other ones in each row and in any order, over what a step of all
    has kept gives the host's scores of them, and keeps the same. So it does after a step in which
    these positions had other tokens: of the others nothing has changed."""
    rows, positions = feed[CANVAS].shape
    at = some_positions(rows, positions)
    first = evaluate(after, graft.neutral(feed, after))
    light = step_of(read_ports(after), feed, at, first)
    wrong = light | {CANVAS: np.roll(light[CANVAS], 1, axis=1)}
    again = step_of(read_ports(after), feed, at, evaluate(after, wrong))
    expected = np.take_along_axis(evaluate(before, feed)[SCORES], at[..., None], axis=1)
    comparison, gap = Comparison(graft.name(), "kept-features", activation_dtype(after)), 0.0
    for given in (light, again):
        made = evaluate(after, given)
        gap = max(gap, comparison.output(SCORES, made[SCORES], expected))
        for port in by_role(read_ports(after), KEPT, "out"):
            gap = max(gap, comparison.output(port.name, made[port.name], first[port.name]))
    what = f"{at.shape[1]} of {positions} positions over what is kept of all have the host's scores"
    return Evidence(what, gap, comparison.limit)


def some_positions(rows: int, positions: int) -> Array:
    """Half of the positions [B, M], other ones in each row, in no order."""
    random = np.random.default_rng(positions)
    each = [random.permutation(positions)[: max(1, positions // 2)] for _ in range(rows)]
    return np.asarray(each, np.int64)


def step_of(ports: Sequence[Port], feed: Feed, at: Array, kept: Feed) -> Feed:
    """A step of the positions `at` of a canvas, over what another step has `kept`."""
    own = {CANVAS: np.take_along_axis(feed[CANVAS], at, axis=1), CHOSEN: at}
    held = {p.mirror: kept[p.name] for p in ports if p.role == KEPT and p.mirror is not None}
    return feed | own | held


@dataclass(frozen=True)
class CanvasCache(Graft):
    """Adds the positions that a step computes, and keeps keys and values of the others: `light`
    steps behind every full one, but for the first `full` of all `steps`.

    Ports chosen [B, M], each position once, and kept.{i} for every operand that positions are
    attended to by. Fixed rows, as a class token's, are computed in every step, as ReCAP's authors
    do. Neutral: all positions, whatever is kept. What a light step attends to is of an earlier
    canvas: the scores change by design.
    """

    laws: ClassVar[tuple[Law, ...]] = (kept_features,)

    steps: int = 16
    full: int = 8
    light: int = 1

    def filling(self, positions: int) -> Filling:
        """Raises NotApplicable for numbers that are none of steps, and for too many steps."""
        filling = Filling(steps=self.steps, full=self.full, light=self.light)
        try:
            filling.counts(positions)
        except RequestError as error:
            raise NotApplicable(f"{self}: {error}") from error
        return filling

    def requires(self, model: ir.Model) -> None:
        facts, ports = read_facts(model), read_ports(model)
        if not isinstance(facts, CanvasFacts):
            raise NotApplicable(f"{self.name()} is for masked generators, not for a {facts.kind}")
        if by_role(ports, KEPT):
            raise NotApplicable(f"this graph keeps features already; name {self.name()} once")
        self.filling(facts.positions)
        self.found(model)

    def found(self, model: ir.Model) -> CanvasRows:
        """Where the positions are. Raises NotApplicable where they are mixed otherwise than by
        attention, and where no position is attended to."""
        infer_shapes(model)
        port = port_of(model, CANVAS)
        assert port is not None
        if isinstance(port.shape[0], int) and port.shape[0] > 1:
            why = f"{self.name()}: the graph is made for {port.shape[0]} rows; export it for any"
            raise NotApplicable(why, [port.name])
        found = canvas_rows(model.graph, value_of(model, port))
        if isinstance(found, Mismatch):
            raise refusal(f"{self.name()}: some positions cannot be computed alone", [found])
        if not found.attended:
            raise NotApplicable(f"{self.name()}: no position is attended to")
        own = [node.inputs[place] for node, place in found.attended]
        if odd := [v for v in (*own, *(n.outputs[0] for n, _, _ in found.tables))
                   if not found.batched(v)]:  # fmt: skip
            why = f"{self.name()}: the batch is not the first axis of what depends on positions"
            raise NotApplicable(why, [label_value(v) for v in odd[:1] if v is not None])
        return found

    def apply(self, model: ir.Model) -> None:
        found, ports = self.found(model), list(read_ports(model))
        graph, rows = model.graph, (by_role(ports, CANVAS, "in")[0].shape[0], "M")
        chosen = new_input(graph, CHOSEN, ir.DataType.INT64, rows)
        ports.append(Port(CHOSEN, CHOSEN, "in", "int64", rows))
        rewrite = ChosenRows(graph, self.name(), found, chosen)
        rewrite.shapes()
        rewrite.tables()
        ports += rewrite.attended(rows[0])
        for port in [p for p in ports if p.role in (CANVAS, SCORES)]:
            value_of(model, port).shape = ir.Shape([rows[0], rows[1], *port.shape[2:]])
        for value in [v for n in graph for v in n.outputs if not v.is_graph_output()]:
            value.shape = None  # those of all positions
        drop_unused(model)
        shaped = [
            replace(p, shape=(*rows, *p.shape[2:])) if p.role in (CANVAS, SCORES) else p
            for p in ports
        ]
        write_ports(model, shaped)
        facts = read_facts(model)
        assert isinstance(facts, CanvasFacts)
        write_facts(model, replace(facts, filling=self.filling(facts.positions)))

    def neutral(self, feed: Feed, after: ir.Model) -> Feed:
        """All positions in order, and nothing of use is kept."""
        rows, positions = feed[CANVAS].shape
        at = np.tile(np.arange(positions, dtype=np.int64), (rows, 1))
        return feed | {CHOSEN: at} | poisoned(read_ports(after), rows)


def poisoned(ports: Sequence[Port], rows: int) -> Feed:
    """What nothing may be read of, for a batch of so many rows."""
    return {
        p.name: np.full([d if isinstance(d, int) else rows for d in p.shape], POISON, p.dtype)
        for p in by_role(ports, KEPT, "in")
    }
