"""A graph of ONNX operators that gradients flow through: its own weights, under their own names."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import onnx_ir as ir
import torch

from graftline.errors import NotApplicable
from graftline.models.training.operators import OPERATORS
from graftline.models.training.operators.arithmetic import torch_dtype
from graftline.models.training.operators.operator import Operator
from graftline.tensors import numbers

FIXED: Mapping[str, tuple[int, ...]] = {"BatchNormalization": (3, 4), "Resize": (1, 2)}
"""By operator, inputs of floats that are not weights: statistics, and factors of sizes."""


class GraphModule:
    """Runs a graph at opset 24 node by node in torch. `weights` are its learned numbers: every
    fp32 initializer of more than one element that some node reads as more than a size.

    No kept library fits: onnx2torch has not been kept since 2024, and onnx2pytorch (0.6, 2026)
    copies weights into layers of its own, transposed or merged, from which no name leads back,
    warns where it computes something near in place of the operator, and imports torchvision.
    """

    def __init__(self, model: ir.Model) -> None:
        """Raises NotApplicable naming operators, or a type, that nothing is trained in."""
        self.model = model
        self._check()
        self._nodes = list(_steps(model.graph))
        self.weights: dict[str, torch.nn.Parameter] = {}
        self._constants: dict[ir.Value, torch.Tensor] = {}
        for name, value in model.graph.initializers.items():
            assert value.const_value is not None
            tensor = torch.from_numpy(numbers(value.const_value).copy())
            if _learned(value):
                self.weights[name] = torch.nn.Parameter(tensor)
            else:
                self._constants[value] = tensor

    def __call__(self, feed: Mapping[str, torch.Tensor], wanted: str) -> torch.Tensor:
        """The output `wanted` for values of the graph's inputs, by name."""
        graph = self.model.graph
        values: dict[ir.Value, torch.Tensor] = dict(self._constants)
        values |= {graph.initializers[name]: weight for name, weight in self.weights.items()}
        values |= {v: feed[v.name] for v in graph.inputs if v.name is not None and v.name in feed}
        for node, run, gone in self._nodes:
            made = run(node, [None if v is None else values[v] for v in node.inputs])
            outputs = [made] if isinstance(made, torch.Tensor) else made
            values.update(zip(node.outputs, outputs, strict=False))
            for value in gone:
                values.pop(value, None)
        return next(values[v] for v in graph.outputs if v.name == wanted)

    def written(self) -> ir.Model:
        """The graph with the weights as they are now."""
        model = self.model.clone()
        for name, weight in self.weights.items():
            array = weight.detach().numpy().copy()
            model.graph.initializers[name].const_value = ir.Tensor(array, name=name)
        return model

    def _check(self) -> None:
        nodes = list(self.model.graph.all_nodes())
        unknown = [
            node for node in nodes if node.domain not in ("", "ai.onnx")
            or node.op_type not in OPERATORS
        ]  # fmt: skip
        if unknown:
            kinds = ", ".join(sorted({node.op_type for node in unknown}))
            raise NotApplicable(
                f"no gradients here through {kinds}; export the model without, or train it in its "
                "own framework",
                [node.name or node.op_type for node in unknown],
            )
        for value in _values(self.model.graph):
            if value.dtype is not None and torch_dtype(value.dtype) is None:
                raise NotApplicable(
                    f"'{value.name}' is {value.dtype.name}; a graph is trained in fp32: export it "
                    "in FLOAT"
                )


def _steps(graph: ir.Graph) -> Iterator[tuple[ir.Node, Operator, list[ir.Value]]]:
    """The nodes in order, and behind each the values that nobody reads any more."""
    last = {value: node for node in graph for value in node.inputs if value is not None}
    kept = {*graph.inputs, *graph.outputs, *graph.initializers.values()}
    gone: dict[ir.Node, list[ir.Value]] = {node: [] for node in graph}
    for value, reader in last.items():
        gone[reader] += [value] if value not in kept else []
    for node in graph:
        yield node, OPERATORS[node.op_type], gone[node]


def _values(graph: ir.Graph) -> Iterator[ir.Value]:
    yield from graph.inputs
    yield from graph.initializers.values()
    yield from (value for node in graph for value in node.outputs)


def _learned(value: ir.Value) -> bool:
    tensor = value.const_value
    assert tensor is not None
    if tensor.dtype != ir.DataType.FLOAT or tensor.size < 2:
        return False
    return any(place not in FIXED.get(node.op_type, ()) for node, place in value.uses())
