"""Graphs that work on caches where they lie: KVCommit, which moves an accepted path's rows, and a
copy."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
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
