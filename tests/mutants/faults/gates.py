"""Gated MLPs: rows that pass by others than the method says, or by more than the MLP."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as ir

from faults.graphs import above, constant, nodes, op, rewired
from faults.mutant import Mutant, Touched, after, instead
from graftline.passes import GRAFTS
from graftline.passes.grafts import gate_mlp
from graftline.ports import GATE, SIMILARITY, SKIPPED

GATES_MLP, SELECTS = GRAFTS["gate-mlp"], GRAFTS["select-mlp-rows"]
FFN_SKIP = {"recipe": "ffn-skip", "speedup": 1.05}


def _without_attention(model: ir.Model) -> int:
    """Rows that pass by an MLP pass by the attention before it, too."""
    found = [n for n in model.graph if GATE in n.metadata_props]
    makers = [n.inputs[1].producer() for n in found if n.inputs[1] is not None]
    starts = [n.inputs[0] for n in makers if n is not None]
    pairs = zip(found, starts, strict=True)
    return sum(rewired(node, 1, start) for node, start in pairs if start is not None)


def _judged_by_itself(model: ir.Model) -> int:
    """The cosine of a row is that with itself."""
    products = [n.inputs[0].producer() for n in nodes(model, "ReduceSum") if n.inputs[0]]
    dots = [n for n in products if n is not None and n.op_type == "Mul"]
    lengths = [n for n in nodes(model, "ReduceL2") if n.inputs[0] is not None]
    wrong = [(n, n.inputs[1]) for n in dots]
    rewires = sum(rewired(n, 0, full) for n, full in wrong if full is not None)
    pairs = zip(lengths[::2], lengths[1::2], strict=True)
    return rewires + sum(rewired(mid, 0, full.inputs[0]) for mid, full in pairs if full.inputs[0])


def _counted_once_more(model: ir.Model) -> int:
    """A row is said to have passed by one MLP more."""
    joined = next(v for v in model.graph.outputs if v.name == SKIPPED).producer()
    assert joined is not None
    one = constant(model, 1, np.int64)
    counts = joined.inputs[0]
    return rewired(joined, 0, op(model, joined, "Add", [counts, one]))


def _scattered(model: ir.Model) -> list[ir.Node]:
    """Where what an MLP makes of the rows left comes back into the stream."""
    return [n for n in nodes(model, "ScatterND") if GATE in n.metadata_props]


def _forgotten(model: ir.Model) -> int:
    """A row that has passed by an MLP does not pass by the next."""
    found = [n for n in nodes(model, "ScatterND") if GATE not in n.metadata_props]
    judged = [n for n in found if n.outputs[0].dtype == ir.DataType.BOOL]
    for node in judged:
        passes = node.inputs[0]
        node.replace_input_with(0, op(model, node, "Xor", [passes, passes]))
    return len(judged)


def _changed_over(model: ir.Model) -> int:
    """The rows of an MLP are those that do not need it."""
    found = [node for last in _scattered(model) for node in above(last.inputs[1])]
    needs = [n for n in dict.fromkeys(found) if n.op_type == "Squeeze" and _negates(n)]
    for node in needs:
        assert node.inputs[0] is not None
        other = op(model, node, "Not", [node.inputs[0]])
        node.replace_input_with(0, other)
    return len(needs)


def _negates(node: ir.Node) -> bool:
    maker = node.inputs[0].producer() if node.inputs[0] is not None else None
    return maker is not None and maker.op_type == "Not"


def _as_the_first(model: ir.Model) -> int:
    """What an MLP makes of the rows left comes back to the first rows of the step, as many: seen
    only where some rows are left and others are not."""
    zero, one = constant(model, [0], np.int64), constant(model, [1], np.int64)
    found = _scattered(model)
    for node in found:
        left = node.inputs[1]
        needed = next(n for n in above(left) if n.op_type == "NonZero").inputs[0]
        rows = op(model, node, "Or", [needed, op(model, node, "Not", [needed])])
        places = op(model, node, "Transpose", [op(model, node, "NonZero", [rows])], perm=[1, 0])
        every = op(model, node, "Unsqueeze", [places, zero])
        count = op(model, node, "Shape", [left], start=1, end=2)
        node.replace_input_with(1, op(model, node, "Slice", [every, zero, count, one]))
    return len(found)


def _another_similarity(model: ir.Model) -> int:
    """Rows pass by later than the similarity that was chosen says."""
    value = model.graph.initializers[SIMILARITY]
    value.const_value = ir.tensor(np.asarray(0.9999, np.float32), name=SIMILARITY)
    return 1


def _saving_more(real: Callable[..., float], touched: Touched) -> Any:
    """The similarity of another speed-up."""

    def chosen(graft: Any, reach: Any, speedup: float) -> float:
        touched.count += 1
        return real(graft, reach, 1 + (speedup - 1) / 2)

    return chosen


GATES = [
    Mutant("gate-of-attention-too", "gate-mlp", "rows pass by the attention before the MLP, too",
           "deep", "gated", after(GATES_MLP, _without_attention), FFN_SKIP),
    Mutant("gate-judged-by-itself", "gate-mlp", "every MLP saturates every row",
           "deep", "gated", after(GATES_MLP, _judged_by_itself), FFN_SKIP),
    Mutant("gate-that-counts-too-many", "gate-mlp", "a row is said to pass by one MLP more",
           "deep", "gated", after(GATES_MLP, _counted_once_more), FFN_SKIP),
    Mutant("rows-that-forget", "select-mlp-rows", "a row passes by one MLP, and not by the next",
           "deep", "passed-by", after(SELECTS, _forgotten), FFN_SKIP),
    Mutant("gate-of-another-speed", "gate-mlp", "the similarity saves half of what was asked for",
           "deep", "saves", instead(gate_mlp, "chosen", _saving_more), FFN_SKIP),
    Mutant("rows-of-the-others", "select-mlp-rows", "an MLP is computed where no row needs it",
           "deep", "neutral or selected", after(SELECTS, _changed_over), FFN_SKIP),
    Mutant("rows-of-another-similarity", "select-mlp-rows", "rows pass by later than was chosen",
           "deep", "selected", after(SELECTS, _another_similarity), FFN_SKIP),
    Mutant("rows-put-back-first", "select-mlp-rows", "rows left come back as the step's first rows",
           "deep", "neutral or selected", after(SELECTS, _as_the_first), FFN_SKIP),
]  # fmt: skip
