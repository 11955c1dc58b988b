"""A draft head's stage on ONNX Runtime's CPU provider: hidden states in, candidates out."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from graftline.errors import BackendError
from graftline.owners import HEAD
from graftline.ports import Port
from graftline.roles import HEADS_IDS, HEADS_TOPK, Roles
from graftline.runtimes.ort.graph import open_graph
from graftline.runtimes.session import Floats, Ints


class OrtHeads:
    """Parallel heads, opened. See `runtimes.head_reader.Heads`."""

    def __init__(
        self, graph: Path, ports: Sequence[Port], threads: int, milliseconds: float = 0.0
    ) -> None:
        self.milliseconds = milliseconds
        roles = Roles.of(ports, HEAD)
        self._given = roles.inputs["hidden"]
        self._wanted = [roles.outputs[role] for role in (HEADS_IDS, HEADS_TOPK)]
        shapes = {port.role: port.shape for port in ports}
        self.heads, self.width = (int(size) for size in shapes[HEADS_IDS][2:])
        self.hidden = int(shapes["hidden"][-1])
        self._session = open_graph(graph, threads)

    def answer(self, hidden: Floats) -> tuple[Ints, Floats]:
        """Ids and logits [B, heads, k] for states [B, H]."""
        try:
            found: list[Any] = self._session.run(self._wanted, {self._given: hidden[:, None]})
        except Exception as error:  # onnxruntime raises its own types, and plain RuntimeError
            raise BackendError(f"onnxruntime failed in the draft heads: {error}") from error
        ids, logits = (np.asarray(array)[:, 0] for array in found)
        return ids, logits
