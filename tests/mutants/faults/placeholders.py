"""Placeholders that are read as other rows, or change what ids of the vocabulary give."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from faults.mutant import Edit, Mutant, after
from graftline.passes import GRAFTS
from graftline.passes.grafts.placeholders import ROWS
from graftline.passes.pipeline.graft import MADE_BY

GRAFT = GRAFTS["placeholders"]
PPD = {"head": "ppd"}
OWN = {"passes": "placeholders{count=2, token=5} | kv-cache | select-rows | reduce-logits"}


def _changed(name: str, change: str) -> Edit:
    """A constant of the graft has other numbers."""

    def edit(model: ir.Model) -> int:
        value = model.graph.initializers.get(name)
        if value is None or value.const_value is None:
            return 0
        numbers = value.const_value.numpy()
        made = {
            "rolled": lambda: np.roll(numbers, 1, 0), "less": lambda: numbers - 1,
            "halved": lambda: numbers / 2,
        }[change]()  # fmt: skip
        value.const_value = ir.tensor(made.astype(numbers.dtype), name=name)
        return 1

    return edit


def _unread(model: ir.Model) -> int:
    """The stream begins with the host's look-up, whatever the id."""
    made = [n for n in model.graph if n.metadata_props.get(MADE_BY) == GRAFT.name()]
    chosen = next(n for n in reversed(made) if n.op_type == "Where")
    chosen.outputs[0].replace_all_uses_with(chosen.inputs[2])  # pyright: ignore[reportArgumentType]
    return 1


PLACEHOLDERS = [
    Mutant("placeholders-of-the-next", "placeholders: apply", "each id has another's row",
           "plain", "placeholder-rows", after(GRAFT, _changed(ROWS, "rolled")), PPD),
    Mutant("placeholders-halved", "placeholders: apply", "rows are half as large",
           "plain", "placeholder-rows", after(GRAFT, _changed(ROWS, "halved")), PPD),
    Mutant("placeholders-one-too-early", "placeholders: _IDS", "the last token is a placeholder",
           "plain", "placeholder-rows",
           after(GRAFT, _changed("placeholders.first", "less")), PPD),
    Mutant("placeholders-unread", "placeholders: _EMBEDDED", "all are the first token",
           "plain", "placeholder-rows", after(GRAFT, _unread), PPD),
    Mutant("placeholders-own-halved", "placeholders: rows", "the mask token's row is half as large",
           "plain", "placeholder-rows", after(GRAFT, _changed(ROWS, "halved")), OWN),
]  # fmt: skip
