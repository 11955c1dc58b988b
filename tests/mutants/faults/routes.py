"""Routes: another part left out, a stream that is not what it was, a cache that is written."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as ir

from faults.graphs import constant, op, rewired
from faults.mutant import Mutant, Touched, after, instead
from graftline.passes import GRAFTS
from graftline.passes.anchors.anchors import with_role
from graftline.passes.grafts import layer_skip
from graftline.passes.grafts.layer_skip import LayerSkip
from graftline.route import ordered
from graftline.runtimes.schedules.budgets import Budgets
from graftline.runtimes.schedules.course import Course
from graftline.runtimes.scores import copied

SKIP = GRAFTS["layer-skip"]
FIRST = {"recipe": "self-skip", "skip": "0"}
MLP = {"recipe": "self-skip", "skip": "mlp=1"}
UNIFIED = {"recipe": "unified-layer-skip"}
SLOWER = {"recipe": "unified-layer-skip", "speedup": 1.2}
BUDGETS = {"recipe": "skipdecode", "speedup": 1.2}


def _another(real: Callable[[LayerSkip, ir.Model], None], touched: Touched) -> Any:
    """The block before the one that is meant loses its MLP."""

    def apply(self: LayerSkip, model: ir.Model) -> None:
        touched.count += 1
        real(LayerSkip(mlp="0"), model)

    return apply


def _halved(model: ir.Model) -> int:
    """What passes by the first block is half as large; what blocks add to it is not."""
    stream = with_role(model.graph, "embedding")[0].outputs[0]
    readers = list(stream.uses())
    half = op(model, readers[0][0], "Mul", [stream, constant(model, 0.5, np.float32)])
    return sum(rewired(node, index, half) for node, index in readers)


def _nothing_dropped(real: Any, touched: Touched) -> Any:
    """The block's caches stay, and are written with what it would have computed."""

    def dropped(self: LayerSkip, before: ir.Model) -> frozenset[str]:
        touched.count += 1
        return frozenset()

    return dropped


def _risen(real: Callable[[Budgets, int, int], int], touched: Touched) -> Any:
    """The whole model again at the end of the span."""

    def route(self: Budgets, step: int, routes: int) -> int:
        touched.count += step >= self.span
        return 0 if step >= self.span else real(self, step, routes)

    return route


def _read_whole(real: Any, touched: Touched) -> Any:
    """The prompt is read by all blocks, where the method skips some of them."""

    def read(self: Course, row: int, tokens: Any) -> Any:
        touched.count += 1
        whole = self.graphs[0]
        scores = copied(whole.follow(row, int(whole.lengths[row]), tokens.tolist()))
        whole.advance(row, len(tokens))
        return scores

    return read


def _one_more(real: Callable[..., frozenset[int]], touched: Touched) -> Any:
    """One block more is skipped than the speed-up asks for."""

    def blocks(speedup: float, order: str, work: Any, rest: float) -> frozenset[int]:
        touched.count += 1
        return ordered(len(work), len(real(speedup, order, work, rest)) + 1, order)

    return blocks


ROUTES = [
    Mutant("route-without-another-mlp", "layer-skip", "the MLP of another block is left out",
           "plain", "route", instead(SKIP, "apply", _another), MLP),
    Mutant("route-with-half-the-stream", "layer-skip", "a skipped block halves the stream",
           "plain", "route", after(SKIP, _halved), FIRST),
    Mutant("route-that-writes-a-skipped-cache", "layer-skip: dropped",
           "a skipped block writes keys and values",
           "plain", "route", instead(SKIP, "dropped", _nothing_dropped), FIRST),
    Mutant("route-of-another-speed", "route: blocks_for",
           "one block more is skipped than asked for",
           "plain", "work", instead(layer_skip, "blocks_for", _one_more), SLOWER),
    Mutant("budget-that-rises", "schedules: budgets", "a block is computed again behind a gap",
           "plain", "schedule", instead(Budgets, "route", _risen), BUDGETS),
    Mutant("prompt-read-by-all-blocks", "schedules: course",
           "skipped blocks keep the prompt's keys",
           "plain", "schedule", instead(Course, "read", _read_whole), UNIFIED),
]  # fmt: skip
