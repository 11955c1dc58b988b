"""An adapter: its graph as published, and its parts written behind a host's blocks.

Kangaroo's (arXiv 2404.18911), over what leaves an exit, x [B, N, H]: one layer of attention with
rotary positions and two norms; no MLP. The host's lm_head scores what the last norm gives:

    state = norm'(x + attention(norm(x)))

Hydra++'s prefix (arXiv 2402.05109), over what its heads would read of the host: a whole layer, with
y = x + attention(norm(x)), state = norm'(y + mlp(norm''(y))). Its heads read that state.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from graftline.errors import NotApplicable
from graftline.head_notes import AdapterNote
from graftline.passes.grafts.head_parts import carried
from graftline.passes.graph.emit import Emit, free_name, new_input, new_output
from graftline.passes.graph.text import write
from graftline.passes.graph.weights import tensor_of
from graftline.tensors import Stacked

FLOAT = ir.DataType.FLOAT
Tables = tuple[ir.TensorProtocol, ir.TensorProtocol]
"""Cosines and sines [positions, head size / 2]."""
HIDDEN, POSITIONS, STATE, KEY, VALUE = "hidden", "positions", "state", "key", "value"
"""Inputs and outputs of an adapter's graph."""
NORM = "adapter.norm"
"""One of its initializers: norm and final_norm [H]; the matrices [out, in] query, output, and keys
with those of values below them; rotary tables cos and sin [positions, head size / 2]; of a prefix
mlp_norm [H] and the matrices gate, up and down too."""
NEEDED = {
    False: "an adapter that was trained behind an exit, as Kangaroo's",
    True: "draft heads behind a decoder layer of their own, as Hydra++'s",
}
"""What a pass needs, a prefix (True) or not."""
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
_SUM = """
    joined = Reshape (Transpose <perm = [0, 2, 1, 3]> (mixed), width)
    sum = Add (x, MatMul (joined, Transpose <perm = [1, 0]> (output)))
"""
_MLP = """
    between = RMSNormalization <axis = -1, epsilon = {epsilon}> (sum, mlp_norm)
    opened = MatMul (between, Transpose <perm = [1, 0]> (gate))
    acted = Mul (opened, Sigmoid (opened))
    raised = Mul (acted, MatMul (between, Transpose <perm = [1, 0]> (up)))
    all = Add (sum, MatMul (raised, Transpose <perm = [1, 0]> (down)))
"""
_STATE = """
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
    def of(cls, model: ir.Model, who: str, prefix: bool = False) -> Adapter:
        """Raises NotApplicable for a model that carries none, or one of the other kind."""
        needs = f"{who} needs {NEEDED[prefix]}; give it: --head PATH"
        head, note = carried(model, AdapterNote, needs)
        if note.prefix != prefix:
            raise NotApplicable(needs)
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
        (given["sum"],) = write(emit, _SUM, given, ["sum"])
        if note.prefix:
            given |= self._weights(emit, "mlp_norm", "gate", "up", "down")
            (given["sum"],) = write(emit, _MLP.format(epsilon=note.epsilon), given, ["all"])
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
    tensors: Mapping[str, ir.TensorProtocol], note: AdapterNote, tables: Tables
) -> ir.Model:
    """The adapter alone: hidden [B, N, H], positions [B, N] -> state [B, N, H] of rows that see
    those before them, and their key and value [B, K, N, D]. `tensors` are those of the head's
    files, by the names of its initializers, keys and values apart.
    """
    graph = ir.Graph([], [], nodes=[], name="adapter", opset_imports={"": 24})
    model = ir.Model(graph, ir_version=11)
    note.write(model)
    emit = Emit(graph, "adapter")
    both = [tensors[f"adapter.{name}"] for name in (KEY, VALUE)]
    known = {name: t for name, t in tensors.items() if t not in both}
    known["adapter.keys"] = Stacked(both, "adapter.keys")
    known |= dict(zip(("adapter.cos", "adapter.sin"), tables, strict=True))
    for name, tensor in known.items():
        emit.initializer(name, tensor)
    adapter = Adapter(model, note)
    x = new_input(graph, HIDDEN, FLOAT, ["B", "N", adapter.width])
    at = new_input(graph, POSITIONS, ir.DataType.INT64, ["B", "N"])
    rows = adapter.rows(emit, x, at)
    state, _ = adapter.state(emit, x, rows, at, (rows.key, rows.value, None))
    new_output(graph, state, STATE, FLOAT, ["B", "N", adapter.width])
    for name, value in ((KEY, rows.key), (VALUE, rows.value)):
        new_output(graph, value, name, FLOAT, ["B", note.kv_heads, "N", note.head_size])
    return model


def rotary_tables(size: int, theta: float, positions: int) -> Tables:
    """The tables of so many positions, with frequencies of the base `theta`."""
    frequencies = theta ** -(np.arange(0, size, 2, dtype=np.float64) / size)
    angles = np.arange(positions, dtype=np.float64)[:, None] * frequencies
    cos, sin = np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)
    return ir.tensor(cos, name="adapter.cos"), ir.tensor(sin, name="adapter.sin")
