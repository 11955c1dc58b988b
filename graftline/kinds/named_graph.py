"""A graph in ONNX Runtime, fed and read by its own names."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from graftline.evaluate import Feed

if TYPE_CHECKING:
    import onnx_ir as ir


@dataclass(frozen=True)
class NamedGraph:
    """A graph that is called with values by name, and gives its outputs by name."""

    session: Any
    inputs: frozenset[str]
    outputs: tuple[str, ...]

    @classmethod
    def of(cls, graph: Path | ir.Model) -> NamedGraph:
        """That of a file, or one in memory. Raises BackendError with ONNX Runtime's own reason."""
        from graftline.runtimes.ort.graph import open_graph
        from graftline.runtimes.ort.held import open_model

        opened = open_graph(graph, 0) if isinstance(graph, Path) else open_model(graph, 0)
        inputs = frozenset(str(one.name) for one in opened.get_inputs())
        return cls(opened, inputs, tuple(str(one.name) for one in opened.get_outputs()))

    def __call__(self, feed: Feed, wanted: Iterable[str] | None = None) -> Feed:
        """The outputs `wanted`, or all; values that the graph does not read are left out."""
        names = list(self.outputs if wanted is None else wanted)
        given = {name: value for name, value in feed.items() if name in self.inputs}
        return dict(zip(names, self.session.run(names, given), strict=True))
