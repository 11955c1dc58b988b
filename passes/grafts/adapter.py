"""An exit's adapter: its graph as published, and its parts written behind a host's blocks.

Kangaroo (arXiv 2404.18911): over what leaves the exit, x [B, N, H], one layer of attention with
rotary positions and two norms; no MLP. The host's lm_head scores what the last norm gives:

    state = norm'(x + attention(norm(x)))
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from graftline.errors import NotApplicable
from graftline.head_notes import AdapterNote
from graftline.passes.grafts.head_parts import HEADS
from graftline.passes.graph.emit import Emit, free_name, new_input, new_output
from graftline.passes.graph.text import write
from graftline.passes.graph.weights import tensor_of
from graftline.tensors import Stacked

FLOAT = ir.DataType.FLOAT
HIDDEN, POSITIONS, STATE, KEY, VALUE = "hidden", "positions", "state", "key", "value"
"""Inputs and outputs of an adapter's graph."""
NORM = "adapter.norm"
"""One of its initializers: norm and final_norm [H]; the matrices [out, in] query, output, and keys
with those of values below them; rotary tables cos and sin [positions, head size / 2]."""
_ROWS = """
    normed = RMSNormalization <axis = -1, epsilon = {epsilon}> (x, norm)
    both = MatMul (normed, Transpose <perm = [1, 0]> (keys))
    flat_key, flat_value = Split <axis = -1> (both, halves)
    split_key = Transpose <perm = [0, 2, 1, 3]> (Reshape (flat_key, kv_heads))
    key = RotaryEmbedding (split_key, cos, sin, positions)
    value = Transpose <perm = [0, 2, 1, 3]> (Reshape (flat_value, kv_heads))
"""
_QUERY = """
    flat = MatMul (normed, Transpose <perm = [1, 0]> (query))
    split = Transpose <perm = [0, 2, 1, 3]> (Reshape (flat, heads))
    rotated = RotaryEmbedding (split, cos, sin, positions)
"""
_STATE = """
    joined = Reshape (Transpose <perm = [0, 2, 1, 3]> (mixed), width)
    sum = Add (x, MatMul (joined, Transpose <perm = [1, 0]> (output)))
    state = RMSNormalization <axis = -1, epsilon = {epsilon}> (sum, final_norm)
"""


@dataclass(frozen=True)
class Rows:
    """What an adapter makes of new rows: x normed [B, N, H], keys and values [B, K, N, D]."""

    normed: ir.Value
    key: ir.Value
    value: ir.Value


@dataclass(frozen=True)
class Adapter:
    """The adapter that a model carries: its graph, and its sizes."""

    model: ir.Model
    note: AdapterNote

    @classmethod
    def of(cls, model: ir.Model, who: str) -> Adapter:
        """Raises NotApplicable for a model that carries none, or one of another width than it."""
        head = model.meta.get(HEADS)
        note = None if head is None else AdapterNote.read(head)
        if head is None or note is None:
            raise NotApplicable(
                f"{who} needs an adapter that was trained behind an exit, as Kangaroo's; give it: "
                "--head PATH"
            )
        return cls(head, note)

    @property
    def width(self) -> int:
        """Numbers of the hidden states that it reads."""
        return int(tensor_of(self.model.graph.initializers[NORM]).shape.numpy()[0])

    def rows(self, emit: Emit, x: ir.Value, positions: ir.Value) -> Rows:
        """Write what it makes of hidden states x [B, N, H] at positions [B, N]."""
        kv = self.note.kv_heads, self.note.head_size
        given = self._weights(emit, "norm", "keys", "cos", "sin") | {
            "x": x, "positions": positions,
            "halves": emit.const("adapter.halves", [kv[0] * kv[1]] * 2, np.int64),
            "kv_heads": emit.const("adapter.kv_heads", [0, 0, *kv], np.int64),
        }  # fmt: skip
        text = _ROWS.format(epsilon=self.note.epsilon)
        return Rows(*write(emit, text, given, ["normed", "key", "value"]))

    def state(
        self,
        emit: Emit,
        x: ir.Value,
        rows: Rows,
        positions: ir.Value,
        seen: tuple[ir.Value, ir.Value, ir.Value | None],
    ) -> tuple[ir.Value, ir.Node]:
        """Write its state [B, N, H] of rows that attend to `seen`: keys, values, and the mask over
        them, None for those of the rows themselves, which are causal; the Attention node too."""
        note, width = self.note, self.note.heads * self.note.head_size
        given = self._weights(emit, "query", "output", "final_norm", "cos", "sin") | {
            "x": x, "normed": rows.normed, "positions": positions,
            "heads": emit.const("adapter.heads", [0, 0, note.heads, note.head_size], np.int64),
            "width": emit.const("adapter.width", [0, 0, width], np.int64),
        }  # fmt: skip
        (query,) = write(emit, _QUERY, given, ["rotated"])
        *both, mask = seen
        attended = [query, *both, *([] if mask is None else [mask])]
        node = emit.node("Attention", attended, [""], is_causal=1 if mask is None else None)
        given["mixed"] = node.outputs[0]
        (state,) = write(emit, _STATE.format(epsilon=note.epsilon), given, ["state"])
        return state, node

    def _weights(self, emit: Emit, *names: str) -> dict[str, ir.Value]:
        """Its weights in the graph that is written to, each once."""
        return {name: self._weight(emit, name) for name in names}

    def _weight(self, emit: Emit, name: str) -> ir.Value:
        own = f"adapter.{name}"
        tensor = tensor_of(self.model.graph.initializers[own])
        known = emit.graph.initializers.get(own)
        if known is not None and known.const_value is tensor:
            return known
        return emit.initializer(free_name(emit.graph, own), tensor)


def adapter_graph(
    tensors: Mapping[str, ir.TensorProtocol], note: AdapterNote, theta: float, positions: int
) -> ir.Model:
    """The adapter alone: hidden [B, N, H], positions [B, N] -> state [B, N, H] of rows that see
    those before them, and their key and value [B, K, N, D]. `tensors` are those of the head's files
    (`models/heads/kangaroo.py`); `positions`: how many its rotary tables of the base `theta` hold.
    """
    graph = ir.Graph([], [], nodes=[], name="adapter", opset_imports={"": 24})
    model = ir.Model(graph, ir_version=11)
    note.write(model)
    emit = Emit(graph, "adapter")
    cos, sin = _tables(note.head_size, theta, positions)
    both = [tensors[f"adapter.{name}"] for name in (KEY, VALUE)]
    known = {name: t for name, t in tensors.items() if t not in both}
    known["adapter.keys"] = Stacked(both, "adapter.keys")
    known |= {"adapter.cos": cos, "adapter.sin": sin}
    for name, tensor in known.items():
        emit.initializer(name, tensor)
    width = note.heads * note.head_size
    x = new_input(graph, HIDDEN, FLOAT, ["B", "N", width])
    at = new_input(graph, POSITIONS, ir.DataType.INT64, ["B", "N"])
    adapter = Adapter(model, note)
    rows = adapter.rows(emit, x, at)
    state, _ = adapter.state(emit, x, rows, at, (rows.key, rows.value, None))
    new_output(graph, state, STATE, FLOAT, ["B", "N", width])
    for name, value in ((KEY, rows.key), (VALUE, rows.value)):
        new_output(graph, value, name, FLOAT, ["B", note.kv_heads, "N", note.head_size])
    return model


def _tables(size: int, theta: float, positions: int) -> list[ir.TensorProtocol]:
    """Cosines and sines [positions, size / 2]."""
    frequencies = theta ** -(np.arange(0, size, 2, dtype=np.float64) / size)
    angles = np.arange(positions, dtype=np.float64)[:, None] * frequencies
    pair = {"adapter.cos": np.cos(angles), "adapter.sin": np.sin(angles)}
    return [ir.tensor(table.astype(np.float32), name=name) for name, table in pair.items()]
