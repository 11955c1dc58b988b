"""Which graphs can score rows whose slots do not hold their own positions."""

from __future__ import annotations

import json
from collections.abc import Collection
from pathlib import Path

import onnx

from graftline.errors import BackendError

NOTE = "graftline.mask"
"""Where the compiler notes, in every attention node, what its mask means."""


def check_scattered(trees: bool, distances: Collection[str]) -> None:
    """Raises BackendError where rows cannot be scored by explicit slots: a graph without `trees`,
    or whose attention goes by `distances` (see `mask_kinds`)."""
    if not trees:
        raise BackendError("this bundle scores chains only; rebuild it with the pass tree-mask")
    if distances:
        raise BackendError(
            f"this model's attention depends on distance ({', '.join(sorted(distances))}), "
            "which the engine computes from cache slots; rows of several branches cannot be "
            "scored"
        )


def mask_kinds(graph: Path) -> set[str]:
    """What the masks of a compiled graph's attentions mean: causal, window, alibi or formula.

    A causal mask is the port `mask` alone. The others also take the distance from a row to what it
    sees, and the graph takes the position of a committed row to be its slot.
    """
    nodes = onnx.load(graph, load_external_data=False).graph.node
    notes = (entry.value for node in nodes for entry in node.metadata_props if entry.key == NOTE)
    return {json.loads(note)["kind"] for note in notes if note}
