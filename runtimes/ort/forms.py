"""Other graphs of an engine, for steps of another form, over the same weights and caches."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from graftline.ports import Port
from graftline.runtimes.ort.graph import open_graph
from graftline.runtimes.ort.packed import PackedGraph


@dataclass(frozen=True)
class Form:
    """One graph that a session may use for some of its steps."""

    graph: Path
    ports: tuple[Port, ...]


class Forms:
    """The forms of one engine. Those of several sequences are opened once, when they are first
    needed."""

    def __init__(self, chains: Form | None, packed: Mapping[int, Form], threads: int) -> None:
        """`chains`: the graph without a mask; `packed`: those that take the rows of so many
        sequences."""
        self._packed, self._threads = dict(packed), threads
        self._open = cache(self._opened)
        self.chains: tuple[Any, tuple[Port, ...]] | None = None
        """The engine for steps whose rows are chains, and its ports; None: the session's own."""
        if chains is not None:
            self.chains = open_graph(chains.graph, threads), chains.ports

    @property
    def most(self) -> int:
        """Most sequences whose rows go into one call; 0: one call for each sequence."""
        return max(self._packed, default=0)

    def open(self, sequences: int) -> None:
        """Open all graphs that so many sequences may need."""
        for count in range(2, min(sequences, self.most) + 1):
            self.packed(count)

    def packed(self, sequences: int) -> PackedGraph:
        """The smallest graph that takes so many, at most `most`."""
        return self._open(min(n for n in self._packed if n >= sequences))

    def _opened(self, sequences: int) -> PackedGraph:
        form = self._packed[sequences]
        return PackedGraph(open_graph(form.graph, self._threads), form.ports)


NO_FORMS = Forms(None, {}, 1)
