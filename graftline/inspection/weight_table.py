"""The weights of a bundle's graphs, each once: what a page lists and draws by size."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import onnx_ir as ir

from graftline.inspection.net import SMALL, place

WITHIN = "in the graph"


@dataclass
class WeightTable:
    """Rows (name, type, shape, bytes, file, offset); files are relative to `folder`."""

    folder: Path
    rows: list[tuple[str, str, str, int, str, int]] = field(default_factory=list[Any])
    _known: dict[Hashable, int] = field(default_factory=dict[Hashable, int])

    def number(self, value: ir.Value) -> int | None:
        """The row of a weight, which is added where it is new; None for a constant."""
        tensor = value.const_value
        if tensor is None or tensor.nbytes <= SMALL:
            return None
        key = place(tensor)
        if key not in self._known:
            self._known[key] = len(self.rows)
            shape = " × ".join(str(d) for d in tensor.shape)
            file, offset = self._where(tensor)
            kind = str(tensor.dtype).lower()
            self.rows.append((value.name or "", kind, shape, tensor.nbytes, file, offset))
        return self._known[key]

    def _where(self, tensor: ir.TensorProtocol) -> tuple[str, int]:
        if not isinstance(tensor, ir.ExternalTensor):
            return WITHIN, 0
        path = Path(tensor.path)
        inside = path.is_relative_to(self.folder)
        return str(path.relative_to(self.folder) if inside else path), tensor.offset or 0
