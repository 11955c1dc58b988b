"""A process that registers every plugin with the real Python layer of TensorRT 11, without a GPU.

`tensorrt_lean` has the base classes, the registry and the module `plugin` of TensorRT, but neither
the builder nor its symbolic shapes; those three names are stood in for here. Prints JSON.
"""

from __future__ import annotations

import enum
import json
import re
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import tensorrt_lean_bindings as trt

OPERATIONS: dict[str, Callable[[int, int], int]] = {
    "PROD": lambda a, b: a * b,
    "SUM": lambda a, b: a + b,
    "CEIL_DIV": lambda a, b: -(-a // b),
}


class TensorFormat(enum.Enum):
    LINEAR = 0


class DimensionExpression:
    """An extent that is known to the test, and to the plugin only when `fixed`."""

    def __init__(self, value: int, fixed: bool) -> None:
        self.value, self.fixed = value, fixed

    def is_constant(self) -> bool:
        return self.fixed

    def get_constant_value(self) -> int:
        return self.value


class ExpressionBuilder:
    def constant(self, value: int) -> DimensionExpression:
        return DimensionExpression(value, fixed=True)

    def operation(
        self, kind: Any, one: DimensionExpression, two: DimensionExpression
    ) -> DimensionExpression:
        value = OPERATIONS[kind.name](one.value, two.value)
        return DimensionExpression(value, one.fixed and two.fixed)


trt.TensorFormat, trt.ITensor = TensorFormat, type("ITensor", (), {})
trt.IDimensionExpr = DimensionExpression
sys.modules["tensorrt"] = trt
import tensorrt_lean_bindings.plugin as api  # noqa: E402

sys.modules["tensorrt.plugin"] = api

from tensorrt_lean_bindings.plugin import _lib, _tensor  # noqa: E402

from graftline.plugins import PLUGINS  # noqa: E402
from graftline.plugins.quick_plugin import register  # noqa: E402
from tests.plugins.cases import every_plugin  # noqa: E402

NAMES = {"float32": "FLOAT", "int64": "INT64", "int32": "INT32"}


def kinds(name: str, inputs: list[np.ndarray]) -> dict[str, Any]:
    """What the plugin, made by the registry, says of its outputs' types and aliases."""
    creator = trt.get_plugin_registry().get_creator(name, "1", "graftline")
    fields = [
        trt.PluginField(n, np.array([v]), _lib._built_in_to_plugin_field_type[type(v)])
        for n, v in PLUGINS[name].attributes.items()
    ]
    request = trt.QuickPluginCreationRequest.STRICT_AOT
    made = _lib.QDP_CREATORS[f"graftline::{name}"].create_plugin(
        name, "graftline", fields, trt.TensorRTPhase.BUILD, request
    )
    types = [getattr(trt.DataType, NAMES[str(x.dtype)]) for x in inputs]
    outputs = made.get_output_data_types(types, [x.ndim for x in inputs])
    return {
        "found": creator is not None,
        "ahead": isinstance(made, trt.IPluginV3QuickAOTBuild),
        "types": [t.name for t in outputs],
        "aliases": [made.get_aliased_input(i) for i in range(len(outputs))],
    }


def launch(name: str, inputs: list[np.ndarray], values: dict[str, Any]) -> dict[str, Any]:
    """The shapes of the outputs and the launch, from symbolic extents."""
    plugin, entry = PLUGINS[name], _lib.QDP_REGISTRY[f"graftline::{name}"]
    api.ShapeExpr._exprBuilder = _tensor.SymIntExpr._exprBuilder = ExpressionBuilder()
    given = []
    for tensor, x in zip(plugin.inputs, inputs, strict=True):
        extents = [
            api.ShapeExpr(DimensionExpression(n, symbol in plugin.static or symbol.isdigit()))
            for symbol, n in zip(tensor.dims, x.shape, strict=True)
        ]
        dtype = getattr(trt.DataType, NAMES[str(x.dtype)])
        given.append(api.TensorDesc(_tensor.ShapeExprs.from_tuple(tuple(extents)), dtype))
    attributes = plugin.values(values)
    outputs = entry.register_func(*given, **attributes)
    kernel, ptx, grid, scalars = entry.aot_impl_func(*given, *attributes.values(), outputs, 0)
    head = re.search(rf"\.entry {kernel}\(([^)]*)\)", ptx)
    assert head is not None
    return {
        "shapes": [[e._expr.value for e in x.shape_expr] for x in outputs],
        "grid": [getattr(grid, f"grid_{axis}")._expr.value for axis in "xy"],
        "threads": grid.block_x._expr.value,
        "scalars": [e._expr.value for e in scalars],
        "parameters": head[1].count(".param"),
    }


def main() -> None:
    register(PLUGINS.values(), 90)
    print(
        json.dumps(
            {
                name: kinds(name, inputs) | launch(name, inputs, dict(values))
                for name, inputs, values in every_plugin()
            }
        )
    )


if __name__ == "__main__":
    main()
