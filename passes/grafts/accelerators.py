"""Accelerators on a stream beside the residual stream of a host's first blocks: their graph alone,
and their nodes behind a host's blocks.

After the idea of M2R2 (arXiv 2502.02040), which runs a parallel residual stream that is ahead of
the model's own, so that what leaves an early block is near what leaves the last. The formulas are
ours. Of the streams h_0 [B, N, H], which enters the first block, and h_{l+1}, which leaves block l:

    p_0 = h_0
    p_{l+1} = p_l + s_l (h_{l+1} - h_l) + B_l silu(A_l norm(p_l))     A_l [r, H], B_l [H, r]

with norm(x) = x / rms(x), and one number s_l by which a block's own step is scaled. The blocks
never read p: it has no cache, and h is as it was. p is computed as its distance from h, so that
with s_l = 1 and B_l = 0 it is h to the bit.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import onnx_ir as ir

from graftline.head_notes import AcceleratorNote
from graftline.passes.grafts.head_parts import carried
from graftline.passes.graph.emit import Emit, free_name, new_input, new_output
from graftline.passes.graph.text import write
from graftline.passes.graph.weights import tensor_of

FLOAT = ir.DataType.FLOAT
STREAM, STATE = "stream.{}", "state.{}"
"""An input of the accelerators' graph, h_l, and an output of it, p_l, by l."""
SCALE, DOWN, UP = "accelerator.{}.scale", "accelerator.{}.down", "accelerator.{}.up"
"""Its initializers by block: s_l [1], A_l and B_l."""
_NEUTRAL = re.compile(r"accelerator\.\d+\.(scale|up)(\.own)*")
_STEP = """
    one = Constant <value_float = 1.0> ()
    moved = Mul (Sub (after, before), Sub (scale, one))
    normed = RMSNormalization <axis = -1, epsilon = {epsilon}> (state, ones)
    narrow = MatMul (normed, Transpose <perm = [1, 0]> (down))
    acted = Mul (narrow, Sigmoid (narrow))
    gained = Add (moved, MatMul (acted, Transpose <perm = [1, 0]> (up)))
"""


@dataclass(frozen=True)
class Accelerators:
    """The accelerators that a model carries: their graph, and what it notes."""

    model: ir.Model
    note: AcceleratorNote

    @classmethod
    def of(cls, model: ir.Model, who: str) -> Accelerators:
        """Raises NotApplicable for a model that carries none."""
        return cls(*carried(
            model, AcceleratorNote,
            f"{who} needs accelerators that were trained for this host's first blocks; make some "
            "with `graftline train accelerator` and give them: --head PATH",
        ))  # fmt: skip

    @property
    def width(self) -> int:
        """Numbers of the stream that they read and write."""
        return int(tensor_of(self._held(DOWN, 0)).shape.numpy()[1])

    def states(self, emit: Emit, streams: Sequence[ir.Value]) -> list[ir.Value]:
        """Write p_1, p_2, ... [B, N, H] of h_0, h_1, ..., one more of these than blocks."""
        ones = emit.const("accelerator.ones", np.ones(self.width, np.float32))
        states, ahead = [streams[0]], None
        for block, (before, after) in enumerate(pairwise(streams)):
            given = {"before": before, "after": after, "state": states[-1], "ones": ones}
            for name, own in (("scale", SCALE), ("down", DOWN), ("up", UP)):
                given[name] = self._weight(emit, own, block)
            (gained,) = write(emit, _STEP.format(epsilon=self.note.epsilon), given, ["gained"])
            ahead = gained if ahead is None else emit.op("Add", [ahead, gained])
            states.append(emit.op("Add", [after, ahead]))
        return states[1:]

    def _weight(self, emit: Emit, name: str, block: int) -> ir.Value:
        tensor, own = tensor_of(self._held(name, block)), name.format(block)
        known = emit.graph.initializers.get(own)
        if known is not None and known.const_value is tensor:
            return known
        return emit.initializer(free_name(emit.graph, own), tensor)

    def _held(self, name: str, block: int) -> ir.Value:
        return self.model.graph.initializers[name.format(block)]


def accelerators_graph(
    tensors: Mapping[str, ir.TensorProtocol], note: AcceleratorNote
) -> ir.Model:
    """The accelerators alone: stream.0, ..., stream.{e} -> state.1, ..., state.{e}, [B, N, H] each.
    `tensors` are those of their files (`models/heads/m2r2.py`)."""
    graph = ir.Graph([], [], nodes=[], name="accelerators", opset_imports={"": 24})
    model = ir.Model(graph, ir_version=11)
    note.write(model)
    emit = Emit(graph, "accelerators")
    for name, tensor in tensors.items():
        emit.initializer(name, tensor)
    alone = Accelerators(model, note)
    shape = ["B", "N", alone.width]
    numbers = range(note.blocks + 1)
    streams = [new_input(graph, STREAM.format(number), FLOAT, shape) for number in numbers]
    for number, state in enumerate(alone.states(emit, streams), 1):
        new_output(graph, state, STATE.format(number), FLOAT, shape)
    return model


def neutralise(model: ir.Model) -> int:
    """Let the accelerators in a model add nothing, s_l = 1 and B_l = 0; how many weights these
    are."""
    count = 0
    for name, value in model.graph.initializers.items():
        if not _NEUTRAL.fullmatch(name):
            continue
        shape = tensor_of(value).shape.numpy()
        array = np.ones(shape, np.float32) if "scale" in name else np.zeros(shape, np.float32)
        value.const_value = ir.tensor(array, name=name)
        count += 1
    return count
