"""Graphs that work on caches where they lie: KVCommit, which moves an accepted path's rows, a copy,
and what takes some slots of a cache out and puts them back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import onnx.parser
from onnx import helper

from graftline.plugins.kv_commit import KV_COMMIT
from graftline.plugins.spec import DOMAIN, OPSET
from graftline.runtimes.ort.provider import open_on
from graftline.runtimes.session import Ints


def commit_graph(kind: int) -> onnx.ModelProto:
    """One node KVCommit with its meaning beside it; `kind` is the caches' ONNX element type."""
    tensors = [*KV_COMMIT.inputs, *KV_COMMIT.outputs]
    infos = [
        helper.make_tensor_value_info(
            t.name, kind if t.type == "T" else onnx.TensorProto.INT64, list(t.dims)
        )
        for t in tensors
    ]
    names = [t.name for t in tensors]
    count = len(KV_COMMIT.inputs)
    ends = names[:count], names[count:]
    node = helper.make_node(KV_COMMIT.name, *ends, name="commit", domain=DOMAIN)
    graph = helper.make_graph([node], "commit", infos[:count], infos[count:])
    opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid(DOMAIN, 1)]
    return helper.make_model(
        graph, functions=[KV_COMMIT.function()], opset_imports=opsets, ir_version=12
    )


class CommitGraph:
    """Runs KVCommit on caches in the memory of `device`."""

    def __init__(self, device: str, threads: int) -> None:
        self.device, self.threads = device, threads
        self._sessions: dict[int, Any] = {}

    def run(
        self,
        address: int,
        shape: Sequence[int],
        kind: int,
        path: Ints,
        count: Ints,
        lengths: Ints,
    ) -> None:
        """Move rows of the caches at `address`, [layers x B, heads, slots, size], in place.

        `path` [B, P] ascending rows of the step, `count` [B] how many of them, `lengths` [B].
        """
        if kind not in self._sessions:
            model = commit_graph(kind).SerializeToString()
            self._sessions[kind] = open_on(self.device, model, self.threads)
        session = self._sessions[kind]
        binding = session.io_binding()
        for name, array in (("path", path), ("count", count), ("lengths", lengths)):
            binding.bind_cpu_input(name, np.ascontiguousarray(array))
        where = (self.device, 0, kind, list(shape), address)
        binding.bind_input("cache", *where)
        binding.bind_output("committed", *where)
        session.run_with_iobinding(binding)


class CopyGraph:
    """Copies numbers from one place in the memory of `device` to another."""

    def __init__(self, device: str, threads: int) -> None:
        self.device, self.threads = device, threads
        self._sessions: dict[int, Any] = {}

    def run(self, source: int, to: int, count: int, kind: int) -> None:
        """Copy `count` numbers of the ONNX element type `kind` between two addresses."""
        if kind not in self._sessions:
            infos = [helper.make_tensor_value_info(n, kind, ["count"]) for n in ("source", "copy")]
            node = helper.make_node("Identity", ["source"], ["copy"])
            graph = helper.make_graph([node], "copy", infos[:1], infos[1:])
            opsets = [helper.make_opsetid("", OPSET)]
            model = helper.make_model(graph, opset_imports=opsets, ir_version=12)
            self._sessions[kind] = open_on(self.device, model.SerializeToString(), self.threads)
        binding = self._sessions[kind].io_binding()
        binding.bind_input("source", self.device, 0, kind, [count], source)
        binding.bind_output("copy", self.device, 0, kind, [count], to)
        self._sessions[kind].run_with_iobinding(binding)


class SlotGraphs:
    """Copies some slots of one sequence's cache, [1, heads, slots, size] in the memory of `device`,
    to [1, heads, count, size] and back."""

    def __init__(self, device: str, threads: int) -> None:
        self.device, self.threads = device, threads
        self._sessions: dict[tuple[str, int], Any] = {}

    def cut(self, address: int, shape: Sequence[int], start: int, to: Any, kind: int) -> None:
        """Fill the value `to` with the slots from `start` on of the cache at `address`."""
        session = self._session("cut", kind)
        binding = session.io_binding()
        binding.bind_input("cache", self.device, 0, kind, list(shape), address)
        binding.bind_cpu_input("start", np.array([start], np.int64))
        binding.bind_cpu_input("stop", np.array([start + to.shape()[2]], np.int64))
        binding.bind_ortvalue_output("slots", to)
        session.run_with_iobinding(binding)

    def put(
        self, address: int, shape: Sequence[int], start: int, kept: Any, count: int, kind: int
    ) -> None:
        """Write the first `count` slots of the value `kept` to the cache, from slot `start` on."""
        session = self._session("put", kind)
        binding = session.io_binding()
        where = (self.device, 0, kind, list(shape), address)
        binding.bind_input("cache", *where)
        binding.bind_ortvalue_input("slots", kept)
        binding.bind_cpu_input("start", np.array([start], np.int64))
        binding.bind_cpu_input("count", np.array([count], np.int64))
        binding.bind_output("written", *where)
        session.run_with_iobinding(binding)

    def _session(self, name: str, kind: int) -> Any:
        if (name, kind) not in self._sessions:
            text = _SLOT_GRAPHS[name].format(T=onnx.TensorProto.DataType.Name(kind).lower())
            model = onnx.parser.parse_model(text)
            opened = open_on(self.device, model.SerializeToString(), self.threads)
            self._sessions[name, kind] = opened
        return self._sessions[name, kind]


_SLOT_GRAPHS = {
    "cut": """<ir_version: 12, opset_import: ["" : 24]>
        cut ({T}[1, heads, capacity, size] cache, int64[1] start, int64[1] stop)
            => ({T}[1, heads, count, size] slots) {{
            axis = Constant <value_ints = [2]> ()
            slots = Slice (cache, start, stop, axis)
        }}""",
    "put": """<ir_version: 12, opset_import: ["" : 24]>
        put ({T}[1, heads, capacity, size] cache, {T}[1, heads, kept, size] slots, int64[1] start,
             int64[1] count) => ({T}[1, heads, capacity, size] written) {{
            axis = Constant <value_ints = [2]> ()
            zero = Constant <value_ints = [0]> ()
            rows = Slice (slots, zero, count, axis)
            written = TensorScatter <axis = 2, mode = "linear"> (cache, rows, start)
        }}""",
}
"""As ONNX text; {T} is the caches' element type."""
