"""A graph whose operators are TensorRT plugins, as its parser wants it."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import onnx_ir as ir

from graftline.plugins.spec import DOMAIN

NAMESPACE = "plugin_namespace"
"""The attribute by which the parser finds a plugin's creator."""


def plugin_names(graph: Path) -> list[str]:
    """graftline's operators in a lowered graph, sorted; none where they are inlined."""
    return sorted({n.op_type for n in ir.load(graph).graph if n.domain == DOMAIN})


@contextmanager
def for_parser(graph: Path) -> Generator[Path]:
    """The file to be parsed: `graph`, or where it holds plugins a copy beside it that has no
    functions (the parser would put them in the plugins' places) and names the plugins' namespace.

    The copy reads the same weights, and goes when the block ends.
    """
    if not plugin_names(graph):
        yield graph
        return
    model = ir.load(graph)
    model.functions.clear()
    for node in model.graph:
        if node.domain == DOMAIN:
            node.attributes[NAMESPACE] = ir.AttrString(NAMESPACE, DOMAIN)
    copy = graph.with_name(f"{graph.stem}.plugins.onnx")
    try:
        ir.save(model, copy)
        yield copy
    finally:
        copy.unlink(missing_ok=True)
