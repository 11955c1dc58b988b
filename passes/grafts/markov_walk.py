"""The loop of a Markov or a Domino head over the rows of a block, and its formula in numpy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from graftline.evaluate import Array
from graftline.head_notes import MARKOV, MarkovNote
from graftline.passes.graph.emit import Emit
from graftline.passes.graph.text import write
from graftline.passes.graph.weights import tensor_of
from graftline.tensors import numbers

FLOAT, INT = ir.DataType.FLOAT, ir.DataType.INT64
Values = Mapping[str, ir.Value]
_BEGUN = """
    asked = GatherND <batch_dims = 1> (tokens, Unsqueeze (rows, axis_2))
    first = Gather <axis = 1> (asked, zero)
    count = Squeeze (Shape <start = 1, end = 2> (rows), axis_0)
    state = Expand (zero_f, Concat <axis = 0> (Shape (first), rank))
"""
_READ = """
    known = Gather (w1, before)
    hidden = Gather <axis = 1> (states, step)
    row = Gather <axis = 1> (logits, step)
    on = Identity (going)
"""
_MIXED = {
    "vanilla": "mixed = Identity (known)",
    "gated": """
        gate = Gemm <transB = 1> (Concat <axis = -1> (hidden, known), gate_weight, gate_bias)
        mixed = Mul (Sigmoid (gate), known)
    """,
    "rnn": """
        read = Concat <axis = -1> (held, known, hidden)
        joint = Gemm <transB = 1> (read, joint_weight, joint_bias)
        keeping, new, out = Split <axis = -1, num_outputs = 3> (joint)
        keep = Sigmoid (keeping)
        {moved} = Add (Mul (keep, held), Mul (Sub (unit, keep), Tanh (new)))
        mixed = Tanh (out)
    """,
    "domino": """
        of_token = Gemm <transB = 1> (known, gru_input)
        of_state = Gemm <transB = 1> (held, gru_state)
        token_r, token_u, token_n = Split <axis = -1, num_outputs = 3> (of_token)
        state_r, state_u, state_n = Split <axis = -1, num_outputs = 3> (of_state)
        reset = Sigmoid (Add (token_r, state_r))
        update = Sigmoid (Add (token_u, state_u))
        new = Tanh (Add (token_n, Mul (reset, state_n)))
        {moved} = Add (Mul (Sub (unit, update), new), Mul (update, held))
        inner = Gemm <transB = 1> (Concat <axis = -1> (hidden, {moved}), correction)
        corrects = Cast <to = 1> (GreaterOrEqual (step, first_row))
        mixed = Mul (Mul (inner, Sigmoid (inner)), corrects)
    """,
}
"""What the token before a row makes of its own row of w1, by the kind of head; of `domino` w1 is
the embedding, and a GRU without biases (reset, update, new) reads it."""
RECURRENT = ("rnn", "domino")
"""Kinds with a state that each row moves."""
_CHOSEN = "best = ArgMax <axis = -1, keepdims = 0> (Add (row, Gemm <transB = 1> (mixed, w2)))"
_NAMED = "{token} = Gather (ids, best)"
_SAME = "{token} = Identity (best)"
_ANCHORED = """
    at_anchor = Equal (step, start)
    token = Where (at_anchor, before, named)
    moved = Where (at_anchor, held, after)
"""
"""Of a block whose first row drafts nothing: the token there is the row's own."""
_SURE = """
    sure = Sigmoid (Gemm <transB = 1> ({read}, confidence_weight, confidence_bias))
    confidence = Squeeze (sure, last)
"""


def walked(emit: Emit, note: MarkovNote, given: Values) -> list[ir.Value]:
    """drafts [B, R], and confidence [B, R] where the head has one, of logits [B, R, Vd], states
    [B, R, H], tokens [B, N] and rows [B, R]; `given` has those and the head's weights."""
    rank = emit.const("markov.rank", [note.rank], np.int64)
    read = {"tokens": given["tokens"], "rows": given["rows"], "rank": rank}
    first, count, state = write(emit, _BEGUN, read, ["first", "count", "state"])
    consts = {
        "unit": emit.const("one.float", 1.0, np.float32),
        "last": emit.const("axes.-1", [-1], np.int64),
    }  # fmt: skip
    if note.kind == "domino":
        consts["first_row"] = emit.const("markov.first", note.first, np.int64)
    if not note.anchor:
        consts["start"] = emit.const("zero", 0, np.int64)
    carried = [first, state]
    body = _body(note, {**given, **consts}, emit.by)
    scanned = len(body.outputs) - 1 - len(carried)
    always = emit.const("always", True, np.bool_)
    loop = emit.node("Loop", [count, always, *carried], [""] * (2 + scanned), body=body)
    return [emit.op("Transpose", [value], perm=[1, 0]) for value in loop.outputs[2:]]


def _body(note: MarkovNote, given: Values, by: str) -> ir.Graph:
    """One row: the token before it [B] and the state [B, r] in, its own and the next state out."""
    inputs = {
        "step": _value("step", INT, []), "going": _value("going", ir.DataType.BOOL, []),
        "before": _value("before", INT, ["B"]), "held": _value("held", FLOAT, ["B", note.rank]),
    }  # fmt: skip
    sure = _SURE.format(read="Concat <axis = -1> (hidden, known)" if note.with_token else "hidden")
    names = {"moved": "moved", "token": "token"}
    if not note.anchor:
        names = {"moved": "after", "token": "named"}
    kept = "" if note.kind in RECURRENT else "{moved} = Identity (held)"
    chosen = _NAMED if "ids" in given else _SAME
    text = "\n".join([
        _READ, _MIXED[note.kind].format(**names), kept.format(**names), _CHOSEN,
        chosen.format(**names), "" if note.anchor else _ANCHORED, "shown = Identity (token)",
        sure if note.confidence else "",
    ])  # fmt: skip
    made = ["on", "token", "moved", "shown", *(["confidence"] if note.confidence else [])]
    body = ir.Graph(list(inputs.values()), [], nodes=[], name="markov")
    body.outputs.extend(write(Emit(body, by), text, {**inputs, **given}, made))
    for place, node in enumerate(body):
        node.name = f"markov.node.{place}"
        for value in node.outputs:
            value.name = f"markov.{place}.{value.index()}"
    return body


def _value(name: str, dtype: ir.DataType, shape: list[str | int]) -> ir.Value:
    shaped = ir.Shape(shape)
    return ir.Value(name=f"markov.{name}", shape=shaped, type=ir.TensorType(dtype))


_HEAD = """
    known = Gather (w1, before)
    scored = Add (logits, MatMul (known, turned))
"""
"""[B, N, V]: of one head, with what the token before adds."""


def chained(
    emit: Emit, logits: Sequence[ir.Value], last: ir.Value, w1: ir.Value, w2: ir.Value
) -> list[ir.Value]:
    """Logits [B, N, V] of parallel heads with what a low-rank matrix adds to each for the best
    token of the head before it; to the first for the token `last` [B, N] behind the row."""
    before, made = last, list[ir.Value]()
    turned = emit.op("Transpose", [w2], perm=[1, 0])
    for place, own in enumerate(logits):
        if place:
            before = emit.op("ArgMax", [made[-1]], axis=-1, keepdims=0)
        given = {"before": before, "logits": own, "w1": w1, "turned": turned}
        made += write(emit, _HEAD, given, ["scored"])
    return made


@dataclass(frozen=True)
class Formula:
    """What `walked` says, in numpy; `weights` of the head, by their names without the prefix."""

    note: MarkovNote
    weights: Mapping[str, Array]

    @classmethod
    def of(cls, head: ir.Model, note: MarkovNote, table: Array | None = None) -> Formula:
        """By the weights that lie beside a head's graph; `table` [V, H]: the embedding that is the
        w1 of the kind `domino`."""
        found = {
            name.removeprefix(MARKOV): np.asarray(numbers(tensor_of(value)), np.float64)
            for name, value in head.graph.initializers.items() if name.startswith(MARKOV)
        }  # fmt: skip
        return cls(note, found if table is None else {**found, "w1": table})

    def scores(self, logits: Array, states: Array, before: Array) -> tuple[Array, Array | None]:
        """Logits [B, R, Vd] with what the tokens `before` each row [B, R] add to them, and the
        confidences [B, R]; `states` [B, R, H]. Of a block whose first row drafts nothing that row
        says nothing."""
        w, known = self.weights, self.weights["w1"][before].astype(np.float64)
        mixed = known
        if self.note.kind == "gated":
            gate = np.concatenate([states, known], -1) @ w["gate_weight"].T + w["gate_bias"]
            mixed = _sigmoid(gate) * known
        if self.note.kind == "rnn":
            mixed = self._recurrent(known, states)
        if self.note.kind == "domino":
            mixed = self._corrected(known, states)
        scored = logits + mixed @ w["w2"][: logits.shape[-1]].T
        if not self.note.confidence:
            return scored, None
        read = np.concatenate([states, known], -1) if self.note.with_token else states
        sure = read @ w["confidence_weight"].T + w["confidence_bias"]
        return scored, _sigmoid(sure)[..., 0]

    def _recurrent(self, known: Array, states: Array) -> Array:
        held, found = np.zeros_like(known[:, 0]), list[Array]()
        for row in range(known.shape[1]):
            read = np.concatenate([held, known[:, row], states[:, row]], axis=-1)
            joint = read @ self.weights["joint_weight"].T + self.weights["joint_bias"]
            keeping, new, out = np.split(joint, 3, axis=-1)
            keep = _sigmoid(keeping)
            held = keep * held + (1 - keep) * np.tanh(new)
            found.append(np.tanh(out))
        return np.stack(found, axis=1)

    def _corrected(self, known: Array, states: Array) -> Array:
        w, begins = self.weights, 0 if self.note.anchor else 1
        batch, rows = known.shape[:2]
        found = np.zeros((batch, rows, len(w["correction"])))
        held = np.zeros((batch, self.note.rank))
        for row in range(begins, rows):
            token = np.split(known[:, row] @ w["gru_input"].T, 3, axis=-1)
            state = np.split(held @ w["gru_state"].T, 3, axis=-1)
            reset, update = (_sigmoid(token[gate] + state[gate]) for gate in (0, 1))
            held = update * held + (1 - update) * np.tanh(token[2] + reset * state[2])
            inner = np.concatenate([states[:, row], held], axis=-1) @ w["correction"].T
            if row >= self.note.first:
                found[:, row] = inner * _sigmoid(inner)
        return found


def _sigmoid(x: Array) -> Array:
    return 1 / (1 + np.exp(-x))
