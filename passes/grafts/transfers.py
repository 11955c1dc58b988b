"""Matrices that make states of the tokens to come: their graph as trained.

Hidden Transfer (arXiv 2404.12022): behind a host's first t blocks, the state x [B, N, H] of a token
becomes a pseudo state of the token i + 2 places behind it, by a trained linear map:

    h_i = W_i x         W_i [H, H], i = 0 .. K - 1
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import onnx_ir as ir

from graftline.head_notes import TransferNote
from graftline.passes.grafts.head_parts import carried
from graftline.passes.graph.emit import Emit, free_name, new_input, new_output
from graftline.passes.graph.weights import tensor_of

FLOAT = ir.DataType.FLOAT
STREAM, PSEUDO = "stream", "pseudo.{}"
"""The input of the matrices' graph, and its output by matrix."""
WEIGHT = "transfer.{}.weight"
"""Its initializers [H, H], by matrix: [out, in]."""


@dataclass(frozen=True)
class Transfers:
    """The matrices that a model carries: their graph, how many, and behind how many blocks of the
    host the states that they make enter."""

    model: ir.Model
    note: TransferNote

    @classmethod
    def of(cls, model: ir.Model, who: str) -> Transfers:
        """Raises NotApplicable for a model that carries none."""
        return cls(*carried(
            model, TransferNote,
            f"{who} needs matrices that make states of the tokens to come, trained for this host; "
            "make some with `graftline train hidden-transfer` and give them: --head PATH",
        ))  # fmt: skip

    @property
    def width(self) -> int:
        """Numbers of the states that they read and make."""
        return int(tensor_of(self._weight(0)).shape.numpy()[0])

    def add(self, emit: Emit, number: int, x: ir.Value) -> ir.Value:
        """Write what one matrix makes of x [B, N, H], as wide."""
        tensor, name = tensor_of(self._weight(number)), WEIGHT.format(number)
        known = emit.graph.initializers.get(name)
        if known is None or known.const_value is not tensor:
            known = emit.initializer(free_name(emit.graph, name), tensor)
        return emit.op("MatMul", [x, emit.op("Transpose", [known], perm=[1, 0])])

    def _weight(self, number: int) -> ir.Value:
        return self.model.graph.initializers[WEIGHT.format(number)]


def transfers_graph(tensors: Mapping[str, ir.TensorProtocol], note: TransferNote) -> ir.Model:
    """The matrices alone: stream [B, N, H] -> pseudo.{i} [B, N, H]. `tensors` are those of their
    files (`models/heads/hidden_transfer.py`)."""
    graph = ir.Graph([], [], nodes=[], name="transfers", opset_imports={"": 24})
    model = ir.Model(graph, ir_version=11)
    note.write(model)
    emit = Emit(graph, "transfers")
    for name, tensor in tensors.items():
        emit.initializer(name, tensor)
    alone = Transfers(model, note)
    shape = ["B", "N", alone.width]
    x = new_input(graph, STREAM, FLOAT, shape)
    for number in range(note.count):
        made = alone.add(emit, number, x)
        new_output(graph, made, PSEUDO.format(number), FLOAT, shape)
    return model
