"""The stages of draft heads on ONNX Runtime: hidden states in, candidates out."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from graftline.errors import BackendError
from graftline.ports import Port, by_role
from graftline.roles import HEADS_IDS, HEADS_TOPK, LAST
from graftline.runtimes.ort.graph import open_graph
from graftline.runtimes.ort.provider import open_on
from graftline.runtimes.session import Floats, Ints


class OrtHeads:
    """Draft heads, opened on `device`, "cpu" or "cuda": one graph of all that read a state alone,
    or one of each that also reads tokens. See `runtimes.head_reader.Heads`."""

    def __init__(
        self, stages: Sequence[tuple[Path, Sequence[Port]]], threads: int, device: str = "cpu"
    ) -> None:
        self._graphs = [_Graph(graph, ports, threads, device) for graph, ports in stages]
        first = self._graphs[0]
        self.sequential, self.hidden, self.width = first.reads_tokens, first.hidden, first.width
        self.reads_last = first.reads_last
        self.heads = len(self._graphs) if self.sequential else first.heads
        self.milliseconds = 0.0

    def answer(
        self, hidden: Floats, head: int = 0, tokens: Ints | None = None
    ) -> tuple[Ints, Floats]:
        """Ids and logits for states [N, H], and tokens behind them. See `Heads.answer`."""
        return self._graphs[head](hidden, tokens)


class _Graph:
    def __init__(self, graph: Path, ports: Sequence[Port], threads: int, device: str) -> None:
        given = {p.role: p for p in ports if p.direction == "in"}
        wanted = [by_role(ports, role, "out")[0] for role in (HEADS_IDS, HEADS_TOPK)]
        self._hidden, self._tokens = given["hidden"].name, given.get("tokens")
        self._last = given.get(LAST)
        self._wanted = [port.name for port in wanted]
        self.heads, self.width = (int(size) for size in wanted[0].shape[2:])
        self.hidden, self.reads_tokens = int(given["hidden"].shape[-1]), "tokens" in given
        self.reads_last = LAST in given
        on_gpu = device != "cpu"
        self._session = open_on(device, graph, threads) if on_gpu else open_graph(graph, threads)

    def __call__(self, hidden: Floats, tokens: Ints | None) -> tuple[Ints, Floats]:
        feed: dict[str, Any] = {self._hidden: hidden[:, None]}
        if self._tokens is not None:
            assert tokens is not None, "a head that reads tokens is given some"
            feed[self._tokens.name] = tokens[:, None]
        if self._last is not None:
            assert tokens is not None, "heads with bigrams are told the token behind a state"
            feed[self._last.name] = tokens
        try:
            found: Any = self._session.run(self._wanted, feed)
        except Exception as error:  # onnxruntime raises its own types, and plain RuntimeError
            raise BackendError(f"onnxruntime failed in the draft heads: {error}") from error
        ids, logits = (np.asarray(array)[:, 0] for array in found)
        return ids, logits
