"""A fused graph run step after step on ONNX Runtime, its state carried over by hand."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir
import onnxruntime

from graftline.evaluate import Array, Feed
from graftline.models.decoder import TinyDecoder
from graftline.passes import GRAFTS, Pipeline
from graftline.passes.laws.common import infer_shapes
from graftline.ports import Port, read_ports

FRONT = "anchors | kv-cache | tree-mask | select-rows | reduce-logits{topk=4}"
LOWERED = " | pack-projections | lower-ort"
SLOTS = 96


def build(text: str, spec: TinyDecoder) -> ir.Model:
    """A tiny host after a pipeline."""
    model = spec.build()
    infer_shapes(model)
    Pipeline.parse(text, GRAFTS).run(model)
    return model


class FusedRun:
    """One sequence. `settings` are the inputs of a graph that samples; `template` is the static
    tree (parents, ranks) of one that drafts. `severity` is ONNX Runtime's: 2 shows warnings."""

    def __init__(
        self,
        model: ir.Model,
        template: tuple[Sequence[int], Sequence[int]] = ((-1,), (0,)),
        severity: int = 3,
        **settings: float,
    ) -> None:
        options = onnxruntime.SessionOptions()
        options.log_severity_level = severity
        data = ir.to_proto(model).SerializeToString()
        self.session = onnxruntime.InferenceSession(data, options, ["CPUExecutionProvider"])
        self.ports = read_ports(model)
        given = {n: np.asarray(v, np.int64) for n, v in zip(
            ("template.parents", "template.ranks"), template, strict=True
        )}  # fmt: skip
        wanted = [p for p in self.ports if p.direction == "in" and "N" not in p.shape]
        self.state = {p.name: given.get(p.name, _start(p, settings)) for p in wanted}
        self.tokens = self.parents = np.full((1, 1), -1, np.int64)

    def prefill(self, prompt: Sequence[int]) -> None:
        """Commit all but the last token, as a chain; the last is the next step's root."""
        if len(prompt) > 1:
            chain = np.arange(-1, len(prompt) - 2, dtype=np.int64)[None]
            out = self._run(np.asarray([prompt[:-1]], np.int64), chain)
            for port in self.ports:
                if port.mirror in self.state and port.name == f"{port.mirror}.out":
                    self.state[port.mirror] = out[port.name]
            self.state["write_index"][0] = len(prompt) - 1
        self.tokens = np.asarray([[prompt[-1]]], np.int64)
        self.parents = np.asarray([[-1]], np.int64)

    def step(self) -> list[int]:
        """One engine call; the tokens it added."""
        out = self._run(self.tokens, self.parents)
        added = out["accepted"][0, : int(out["count"][0])].tolist()
        self.tokens, self.parents = np.asarray([added[-1:]]), np.full((1, 1), -1, np.int64)
        for port in self.ports:  # `committed` comes after `out`, whose value it replaces
            if port.mirror in ("tokens", "parents"):
                setattr(self, port.mirror, out[port.name])
            elif port.mirror is not None:
                self.state[port.mirror] = out[port.name]
        return added

    def generate(self, count: int) -> list[int]:
        """At least `count` tokens, cut to them."""
        tokens: list[int] = []
        while len(tokens) < count:
            tokens += self.step()
        return tokens[:count]

    def bound(self, shared: bool) -> Feed:
        """One step on bound buffers; `shared` gives a cache, and its outputs, one buffer."""
        binding = self.session.io_binding()
        feed = {**self.state, "tokens": np.asarray([[3, 4]]), "parents": np.asarray([[-1, 0]])}
        held: Feed = {k: v.copy() for k, v in feed.items()}
        for name, array in held.items():
            binding.bind_ortvalue_input(name, onnxruntime.OrtValue.ortvalue_from_numpy(array))
        sizes = {"B": 1, "N": 2, "S": SLOTS}
        for port in [p for p in self.ports if p.direction == "out"]:
            array = np.zeros([sizes.get(str(d), d) for d in port.shape], port.dtype)
            if shared and port.role.startswith("cache."):
                array = held[str(port.mirror)]
            held[port.name] = array
            value = onnxruntime.OrtValue.ortvalue_from_numpy(array)
            binding.bind_ortvalue_output(port.name, value)
        self.session.run_with_iobinding(binding)
        return held

    def _run(self, tokens: Array, parents: Array) -> Feed:
        feed = {**self.state, "tokens": tokens, "parents": parents}
        names = [o.name for o in self.session.get_outputs()]
        return dict(zip(names, self.session.run(names, feed), strict=True))


def _start(port: Port, settings: dict[str, float]) -> Array:
    """A state input before the first step: caches of poison, an empty table."""
    if port.role in ("cache.key", "cache.value"):
        heads, size = int(port.shape[1]), int(port.shape[3])
        return np.full((1, heads, SLOTS, size), 1e3, np.float32)
    if port.role == "table":
        return np.full([int(d) for d in port.shape], -1, np.int32)
    return np.full(1, settings.get(port.name, 0), port.dtype)
