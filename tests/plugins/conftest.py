"""The three ways to compute a plugin: its function, its kernel (interpreted), its reference."""

from __future__ import annotations

import pickle
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import onnx
import onnx_ir as ir
import pytest
from onnx import helper

from graftline.evaluate import Array, run
from graftline.plugins import PLUGINS
from graftline.plugins.spec import DOMAIN, OPSET, Plugin, Values

Interpret = Callable[..., list[Array]]


def model(plugin: Plugin, inputs: Sequence[Array], values: Values | None = None) -> ir.Model:
    """A model of one node, with the plugin's function beside it."""
    given = plugin.values(values)
    outputs = plugin.empty(inputs, given)
    names = [[t.name for t in ts] for ts in (plugin.inputs, plugin.outputs)]

    def infos(names: Sequence[str], arrays: Sequence[Array]) -> list[onnx.ValueInfoProto]:
        return [
            helper.make_tensor_value_info(n, helper.np_dtype_to_tensor_dtype(x.dtype), x.shape)
            for n, x in zip(names, arrays, strict=True)
        ]

    node = helper.make_node(plugin.name, *names, domain=DOMAIN, **given)
    graph = helper.make_graph([node], "one", infos(names[0], inputs), infos(names[1], outputs))
    opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid(DOMAIN, 1)]
    functions = [plugin.function()]
    proto = helper.make_model(graph, functions=functions, opset_imports=opsets, ir_version=12)
    onnx.checker.check_model(proto, full_check=True)
    return ir.from_proto(proto)


def meaning(plugin: Plugin, inputs: Sequence[Array], values: Values | None = None) -> list[Array]:
    """The function's outputs, from the oracle."""
    feed = {t.name: x for t, x in zip(plugin.inputs, inputs, strict=True)}
    results = run(model(plugin, inputs, values), feed)
    return [results[t.name] for t in plugin.outputs]


def referred(plugin: Plugin, inputs: Sequence[Array], values: Values | None = None) -> list[Array]:
    """The reference's outputs."""
    return list(plugin.reference(*inputs, **plugin.values(values)))


@pytest.fixture(scope="session")
def interpret() -> Iterator[Interpret]:
    """`interpret(plugin, inputs, values)`: the kernel's outputs; they begin as poison."""
    pytest.importorskip("triton", reason="kernels need triton (pip install graftline[kernels])")
    pytest.importorskip("torch", reason="Triton's interpreter needs torch tensors")
    worker = subprocess.Popen(
        [sys.executable, "-m", "tests.plugins.interpreter"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=Path(__file__).parents[2],
    )  # fmt: skip
    assert worker.stdin is not None
    assert worker.stdout is not None
    requests, answers = worker.stdin, worker.stdout

    def ask(plugin: Plugin, inputs: Sequence[Array], values: Values | None = None) -> list[Array]:
        assert PLUGINS[plugin.name] is plugin
        pickle.dump((plugin.name, list(inputs), values), requests)
        requests.flush()
        answer = pickle.load(answers)
        if isinstance(answer, Exception):
            raise answer
        return answer

    yield ask
    requests.close()
    worker.wait(timeout=30)
