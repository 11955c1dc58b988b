"""Which graphs can score rows whose slots do not hold their own positions."""

from __future__ import annotations

import json
from pathlib import Path

import onnx_ir as ir

NOTE = "graftline.mask"
"""Where the compiler notes, in every attention node, what its mask means."""


def mask_kinds(graph: Path) -> set[str]:
    """What the masks of a compiled graph's attentions mean: causal, window, alibi or formula.

    A causal mask is the port `mask` alone. The others also take the distance from a row to what it
    sees, and the graph takes the position of a committed row to be its slot.
    """
    notes = (node.metadata_props.get(NOTE, "") for node in ir.load(graph).graph)
    return {json.loads(note)["kind"] for note in notes if note}
