"""Export a network that runs once to ONNX, without its weights."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import onnx_ir as ir
import torch

from graftline.errors import NotApplicable
from graftline.models.export.export import Exported, failed, quiet, translate, untouched
from graftline.passes.anchors.roles import declare

SIZES: Mapping[str, int] = {"B": 2, "H": 2, "W": 3, "L": 7}
"""What the symbols of shapes stand for in the example; H and W in units of `multiple`."""
LARGEST_BATCH = 63
"""diffusers copies larger batches into one piece before it resizes them: the numbers are the same,
and torch asks for the bound."""


@dataclass(frozen=True)
class Input:
    """An input of floats, or of `integer`s. `shape` mixes sizes and the symbols B (the batch), H
    and W (of a sample or its latents) and L (the rows of a condition)."""

    name: str
    role: str
    shape: tuple[int | str, ...]
    integer: bool = False


@dataclass(frozen=True)
class Network:
    """What a module is given and what it gives: `call(module, *inputs)` is one tensor of the role
    `output`. H and W are multiples of `multiple`, at most `most` of them (None: any number)."""

    inputs: tuple[Input, ...]
    output: str
    call: Callable[..., Any]
    multiple: int = 1
    most: int | None = None


class _Called(torch.nn.Module):
    """A module as its network calls it; its parameters are named as `models/export` has them."""

    def __init__(self, module: torch.nn.Module, call: Callable[..., Any]) -> None:
        super().__init__()
        self.host, self.call = module, call

    def forward(self, *given: torch.Tensor) -> torch.Tensor:
        return self.call(self.host, *given)


def export_network(module: torch.nn.Module, network: Network) -> Exported:
    """Export a module on meta tensors as its network says; initializers carry the module's own
    names, inputs and the output those of the network, with their roles. Raises NotApplicable when
    torch cannot export it with these sizes free."""
    untouched(module)
    given = tuple(_example(one, network.multiple) for one in network.inputs)
    try:
        with quiet(), torch.no_grad():
            program = torch.export.export(
                _Called(module, network.call).eval(),
                given,
                dynamic_shapes=(tuple(_free(one, network) for one in network.inputs),),
                strict=False,
            )
    except Exception as error:  # torch raises whatever its passes do
        raise failed(type(module).__name__, error) from error
    exported = translate(program, module.state_dict())
    graph = exported.model.graph
    if len(graph.inputs) != len(network.inputs):
        raise NotApplicable(
            f"{type(module).__name__}: its graph has {len(graph.inputs)} inputs, not the "
            f"{len(network.inputs)} that it is called with; export it to ONNX yourself"
        )
    _name_symbols(graph, network)
    for value, one in zip(graph.inputs, network.inputs, strict=True):
        value.name = one.name
        declare(value, one.role)
    graph.outputs[0].name = network.output
    declare(graph.outputs[0], network.output)
    return exported


def _name_symbols(graph: ir.Graph, network: Network) -> None:
    """Let shapes say B, H, W and L where torch numbers its symbols: [B, 4, 8*H, 8*W]."""
    names: dict[str, str] = {}
    for value, one in zip(graph.inputs, network.inputs, strict=True):
        for dim, symbol in zip(value.shape or (), one.shape, strict=True):
            if isinstance(symbol, str):
                names[str(dim).removeprefix(f"{network.multiple}*")] = symbol
    pattern = re.compile("|".join(rf"\b{re.escape(name)}\b" for name in names))
    nodes = (value for node in graph.all_nodes() for value in node.outputs)
    for value in (*graph.inputs, *nodes):
        if value.shape is not None and not value.shape.is_static():
            dims = [
                d if isinstance(d, int) else pattern.sub(lambda m: names[m[0]], str(d))
                for d in value.shape
            ]
            value.shape = ir.Shape(dims)


def _example(one: Input, multiple: int) -> torch.Tensor:
    unit = {"H": multiple, "W": multiple}
    dims = [d if isinstance(d, int) else SIZES[d] * unit.get(d, 1) for d in one.shape]
    return torch.zeros(dims, dtype=torch.int64 if one.integer else torch.float32)


def _free(one: Input, network: Network) -> dict[int, Any]:
    """The free sizes of an input, by axis."""
    found: dict[int, Any] = {}
    for axis, symbol in enumerate(one.shape):
        if symbol == "B":
            found[axis] = torch.export.Dim("B", max=LARGEST_BATCH)
        elif symbol in ("H", "W"):
            size = torch.export.Dim(str(symbol), max=network.most)
            found[axis] = size if network.multiple == 1 else network.multiple * size
        elif isinstance(symbol, str):
            found[axis] = torch.export.Dim(symbol)
    return found
