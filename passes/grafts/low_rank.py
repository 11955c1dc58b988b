"""Low-rank corrections of blocks that are passed by: their graph as trained, and one of them in a
host's.

LoRA-Drop (arXiv 2601.02569): a block that a token passes by gives what it gave at the last token
that all blocks computed, plus a low-rank function of the stream x [B, N, H] that enters it:

    y = refreshed + B (A x)         A [r, H], B [H, r]
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import onnx_ir as ir

from graftline.errors import NotApplicable
from graftline.head_notes import LowRankNote
from graftline.passes.anchors.anchors import block_outputs
from graftline.passes.grafts.head_parts import carried
from graftline.passes.graph.emit import Emit, free_name, new_input, new_output
from graftline.passes.graph.text import write
from graftline.passes.graph.weights import tensor_of

FLOAT = ir.DataType.FLOAT
STREAM, CORRECTION = "stream.{}", "correction.{}"
"""An input and an output of the corrections' graph, by block."""
DOWN, UP = "low_rank.{}.down", "low_rank.{}.up"
"""Its initializers by block: A [r, H], and B [H, r] with the scale of training."""
_TEXT = """
    narrow = MatMul (x, Transpose <perm = [1, 0]> (down))
    wide = MatMul (narrow, Transpose <perm = [1, 0]> (up))
"""


@dataclass(frozen=True)
class Corrections:
    """The corrections that a model carries: their graph, and the blocks that they are of."""

    model: ir.Model
    layers: tuple[int, ...]

    @classmethod
    def of(cls, model: ir.Model, who: str) -> Corrections:
        """Raises NotApplicable for a model that carries none."""
        head, note = carried(
            model, LowRankNote,
            f"{who} needs low-rank corrections that were trained for this host; make some with "
            "`graftline train lora-drop` and give them: --head PATH",
        )  # fmt: skip
        return cls(head, note.layers)

    @property
    def width(self) -> int:
        """Numbers of the stream that they read and write."""
        return int(tensor_of(self._weight(DOWN, self.layers[0])).shape.numpy()[1])

    def of_blocks(self, host: ir.Model, small: bool) -> dict[int, int]:
        """Of a host's blocks those that are passed by, each with the block whose correction it
        has: its own. A `small` host, which stands for another, may lack some, but has
        one at least. Raises NotApplicable for a block that is not there, and where none would be
        left."""
        count = len(block_outputs(host.graph))
        found = {layer: layer for layer in self.layers if layer < count}
        if not small and (missing := [layer for layer in self.layers if layer >= count]):
            raise NotApplicable(
                f"the corrections are of block {missing[0]} too, and this host has blocks 0 to "
                f"{count - 1}: they are another model's"
            )
        found = found or {count - 1: self.layers[0]}
        if len(found) == count:
            if not small:
                raise NotApplicable(
                    f"corrections of all {count} blocks leave none that a light step computes; "
                    "train them for fewer"
                )
            del found[min(found)]
        return found

    def add(self, emit: Emit, layer: int, x: ir.Value) -> ir.Value:
        """Write the correction of a block: of x [B, N, H] as wide."""
        given = {"x": x}
        for name, own in (("down", DOWN), ("up", UP)):
            tensor = tensor_of(self._weight(own, layer))
            known = emit.graph.initializers.get(own.format(layer))
            if known is None or known.const_value is not tensor:
                known = emit.initializer(free_name(emit.graph, own.format(layer)), tensor)
            given[name] = known
        return write(emit, _TEXT, given, ["wide"])[0]

    def _weight(self, name: str, layer: int) -> ir.Value:
        return self.model.graph.initializers[name.format(layer)]


def corrections_graph(tensors: Mapping[str, ir.TensorProtocol], note: LowRankNote) -> ir.Model:
    """The corrections alone: for each block stream.{i} [B, N, H] -> correction.{i} [B, N, H].
    `tensors` are those of their files (`models/heads/lora_drop.py`)."""
    graph = ir.Graph([], [], nodes=[], name="corrections", opset_imports={"": 24})
    model = ir.Model(graph, ir_version=11)
    note.write(model)
    emit = Emit(graph, "corrections")
    for name, tensor in tensors.items():
        emit.initializer(name, tensor)
    alone = Corrections(model, note.layers)
    for layer in note.layers:
        shape = ["B", "N", alone.width]
        x = new_input(graph, STREAM.format(layer), FLOAT, shape)
        new_output(graph, alone.add(emit, layer, x), CORRECTION.format(layer), FLOAT, shape)
    return model
