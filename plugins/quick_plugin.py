"""Register the plugins with TensorRT as quickly deployable plugins, compiled ahead of time.

The engine holds the kernels' PTX; a process that runs it needs neither Python nor Triton.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Iterable, Sequence
from typing import Any

from graftline.errors import BackendError, GraftlineError
from graftline.plugins.compile import CAPABILITIES, Compiled, compile_planned
from graftline.plugins.spec import DOMAIN, Plugin, Tensor, Value

_TYPES = {
    "FLOAT": "float32", "HALF": "float16", "BF16": "bfloat16", "INT64": "int64", "INT32": "int32",
}  # fmt: skip

_registered: dict[str, int] = {}
"""Name -> capability: TensorRT's registry is the process's, and takes a name once."""


def register(plugins: Iterable[Plugin], capability: int) -> None:
    """Make the `plugins` known to TensorRT's registry under the namespace "graftline".

    Engines built afterwards hold kernels for `capability` (90 is sm_90); a process builds for one.
    What is registered stays so, and is left out. Raises BackendError when TensorRT with its module
    `tensorrt.plugin` is not installed (TensorRT-RTX has none), and for a second capability.
    """
    try:
        trt, api = (importlib.import_module(m) for m in ("tensorrt", "tensorrt.plugin"))
    except ImportError as error:
        raise BackendError(
            f"plugins need TensorRT 11 ({error}); pip install tensorrt-cu13, or build for a target "
            "that inlines them (trt-rtx)"
        ) from error
    if capability not in CAPABILITIES:
        known = ", ".join(f"sm_{n}" for n in CAPABILITIES)
        raise BackendError(f"plugins are compiled for {known}, not for sm_{capability}")
    for plugin in plugins:
        known = _registered.get(plugin.name)
        if known is None:
            _register(plugin, capability, trt, api)
            _registered[plugin.name] = capability
        elif known != capability:
            raise BackendError(
                f"{plugin.name} is registered for sm_{known} in this process; build for "
                f"sm_{capability} in another"
            )


def _register(plugin: Plugin, capability: int, trt: Any, api: Any) -> None:
    key = f"{DOMAIN}::{plugin.name}"
    names = [t.name for t in plugin.inputs]

    def describe(*inputs: Any, **values: Value) -> Any:
        dims = plugin.dims([list(x.shape_expr) for x in inputs], values)
        return tuple(_output(plugin, t, inputs, dims, trt, api) for t in plugin.outputs)

    def implement(*arguments: Any) -> tuple[Any, ...]:
        count = len(names)
        inputs, (outputs, _tactic) = arguments[:count], arguments[-2:]
        values = dict(zip(plugin.attributes, arguments[count:-2], strict=True))
        dims = _extents(plugin, inputs, values)
        plan = plugin.plan(dims, values, api.cdiv)
        made = compile_planned(plugin, plan, _float_type(plugin, inputs), capability)
        assert len(outputs) == len(plugin.outputs)
        return made.name, made.ptx, _launch(made, plan.grid, api), _scalars(plugin, dims, api)

    describe.__signature__ = _signature(  # type: ignore[attr-defined]
        [(n, api.TensorDesc) for n in names],
        [(n, type(v)) for n, v in plugin.attributes.items()],
        returns=tuple[(api.TensorDesc,) * len(plugin.outputs)],
    )
    implement.__signature__ = _signature(  # type: ignore[attr-defined]
        [(n, api.TensorDesc) for n in names],
        [(n, type(v)) for n, v in plugin.attributes.items()],
        [("outputs", tuple[api.TensorDesc]), ("tactic", int)],
        returns=tuple[str, str, api.KernelLaunchParams, api.SymIntExprs],
    )
    api.register(key)(describe)
    api.aot_impl(key)(implement)


def _signature(
    *groups: Sequence[tuple[str, Any]], returns: Any = inspect.Signature.empty
) -> inspect.Signature:
    """TensorRT reads a plugin's schema from the signature of its functions."""
    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    flat = [inspect.Parameter(n, kind, annotation=t) for group in groups for n, t in group]
    return inspect.Signature(flat, return_annotation=returns)


def _output(
    plugin: Plugin, tensor: Tensor, inputs: Sequence[Any], dims: Any, trt: Any, api: Any
) -> Any:
    alias = plugin.aliases.get(tensor.name)
    if alias is not None:
        return inputs[[t.name for t in plugin.inputs].index(alias)].aliased()
    floats = [x.dtype for t, x in zip(plugin.inputs, inputs, strict=True) if t.type == "T"]
    kinds = {numpy: name for name, numpy in _TYPES.items()}
    dtype = floats[0] if tensor.type == "T" else getattr(trt.DataType, kinds[tensor.type])
    return api.from_shape_expr(tuple(dims[d] for d in tensor.dims), dtype)


def _extents(plugin: Plugin, inputs: Sequence[Any], values: dict[str, Value]) -> dict[str, Any]:
    """Every symbol's extent: integers for the static ones, TensorRT's expressions for others."""
    dims = plugin.dims([list(x.shape_expr) for x in inputs], values)
    for symbol in plugin.static:
        if not dims[symbol].is_constant:
            raise GraftlineError(
                f"{plugin.name}: the extent {symbol} is not fixed in this graph; its kernel is "
                "compiled for one value: give the graph's inputs fixed sizes"
            )
        dims[symbol] = dims[symbol].constant_value()
    return dims


def _float_type(plugin: Plugin, inputs: Sequence[Any]) -> str:
    """The numpy name of the plugin's float type; checks the types of the other inputs."""
    found = "float32"
    for tensor, given in zip(plugin.inputs, inputs, strict=True):
        name = str(_TYPES.get(given.dtype.name, given.dtype.name))
        if tensor.type == "T":
            found = name
        elif tensor.type != name:
            raise GraftlineError(f"{plugin.name}: {tensor.name} is {name}, not {tensor.type}")
    return found


def _launch(made: Compiled, grid: tuple[Any, Any], api: Any) -> Any:
    launch = api.KernelLaunchParams()
    launch.grid_x, launch.grid_y = grid
    launch.block_x, launch.shared_mem = made.threads, made.shared
    return launch


def _scalars(plugin: Plugin, dims: dict[str, Any], api: Any) -> Any:
    """The kernel's int32 arguments between its inputs and its outputs."""
    found = api.SymIntExprs(len(plugin.scalars))
    for i, symbol in enumerate(plugin.scalars):
        found[i] = api.SymInt32(dims[symbol])
    return found
