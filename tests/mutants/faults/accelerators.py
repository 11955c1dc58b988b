"""Accelerators of an exit: a lost part, another stream, and blocks that go on from theirs."""

from __future__ import annotations

import onnx_ir as ir

from faults.graphs import bypass, rewired
from faults.mutant import Mutant, Touched, after, instead
from graftline.passes import GRAFTS
from graftline.passes.anchors.anchors import block_outputs, with_role
from graftline.passes.grafts import accelerators
from graftline.passes.pipeline.graft import MADE_BY

EXIT = GRAFTS["accelerated-exit"]
M2R2 = {"head": "m2r2"}


def _own(model: ir.Model, op_type: str) -> list[ir.Node]:
    """The accelerators' nodes of that type."""
    made = (n for n in model.graph if n.metadata_props.get(MADE_BY) == EXIT.name())
    return [n for n in made if n.op_type == op_type]


def _without_activation(model: ir.Model) -> int:
    """What the thin products have between them is left out."""
    acted = [n.outputs[0].consumers()[0] for n in _own(model, "Sigmoid")]
    return sum(map(bypass, acted))


def _scale_as_it_is(real: str, touched: Touched) -> str:
    """A block's step is added once more, wherever the formula is written."""
    touched.count += 1
    return real.replace("Sub (scale, one)", "scale")


def _of_the_blocks(model: ir.Model) -> int:
    """An accelerator reads the blocks' stream, and not the one beside it."""
    norms, streams = _own(model, "RMSNormalization"), block_outputs(model.graph)
    return sum(rewired(norm, 0, streams[n]) for n, norm in enumerate(norms[1:]))


def _handed_on(model: ir.Model) -> int:
    """The blocks behind the exit go on from the stream beside."""
    graph, (norm,) = model.graph, with_role(model.graph, "final_norm")
    stream, state = block_outputs(graph)[-1], norm.inputs[0]
    assert state is not None
    taps = [n for n in stream.consumers() if n.op_type == "Identity"]
    for tap in taps:
        graph.remove(tap)
        graph.insert_before(norm, tap)
        rewired(tap, 0, state)
    return len(taps)


ACCELERATORS = [
    Mutant("accelerator-without-activation", "accelerated-exit: apply", "a SiLU is left out",
           "plain", "accelerated", after(EXIT, _without_activation), M2R2),
    Mutant("accelerator-scale-as-it-is", "accelerators: states", "a step is added once more",
           "plain", "plain-exit", instead(accelerators, "_STEP", _scale_as_it_is), M2R2),
    Mutant("accelerator-of-the-blocks", "accelerated-exit: apply", "it reads the blocks' stream",
           "plain", "depth", after(EXIT, _of_the_blocks), M2R2),
    Mutant("accelerators-handed-to-the-rest", "accelerated-exit: apply",
           "the rest goes on from the stream beside",
           "plain", "resumed", after(EXIT, _handed_on), M2R2),
]  # fmt: skip
