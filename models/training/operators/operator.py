"""What an ONNX operator is in torch."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import onnx_ir as ir
import torch

from graftline.errors import NotApplicable

Values = Sequence[torch.Tensor | None]
"""The inputs of a node in order, None where one is left out."""
Operator = Callable[[ir.Node, Values], torch.Tensor | Sequence[torch.Tensor]]
"""operator(node, inputs) -> its outputs, as ONNX defines them at opset 24."""


def simple(function: Callable[..., torch.Tensor]) -> Operator:
    """An operator without attributes that is a function of its inputs."""

    def run(node: ir.Node, values: Values) -> torch.Tensor:
        return function(*values)

    return run


def given(values: Values, place: int) -> torch.Tensor | None:
    """An input that may be left out."""
    return values[place] if place < len(values) else None


def needed(values: Values, place: int = 0) -> torch.Tensor:
    """An input that every such node has."""
    value = values[place]
    assert value is not None, "the checker of ONNX refuses such a node"
    return value


def whole_numbers(value: torch.Tensor) -> list[int]:
    """The numbers of an input that says sizes or axes."""
    return [int(n) for n in value.reshape(-1).tolist()]


def refused(node: ir.Node, what: str) -> NotApplicable:
    """The error for a form of an operator that is not written in torch here."""
    return NotApplicable(
        f"{node.op_type} '{node.name}' {what}: a graph is trained without it; export the model "
        "another way, or train it in its own framework"
    )
