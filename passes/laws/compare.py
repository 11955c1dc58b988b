"""How two runs of a graph are compared: one place for tolerances, channels, integers and NaN."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from graftline.errors import LawBroken
from graftline.evaluate import Array, Feed
from graftline.facts import FACTS_KEY, read_facts
from graftline.nearness import few_rows
from graftline.ports import Port, step_port

TOLERANCE: Mapping[str, float] = {"float32": 3e-5, "float16": 2e-2, "bfloat16": 5e-2}
"""Largest difference by activation dtype, relative to the magnitude of its own channel. A product
over K terms is off by eps * sqrt(K) relative to its terms: 1e-5 at K = 8192 in float32; 3e-6 is
the most seen on SmolLM2."""
FLOOR: Mapping[str, float] = {"float32": 1e-2, "float16": 1.0, "bfloat16": 1.0}
"""The least magnitude a channel is given, relative to the largest of the whole output: what is
rounded is the terms of a sum, which may be larger than the sum. In 16 bits a single large term
rounds by more than a small channel holds, so that there only the whole output can be judged."""
IDS: Mapping[str, str] = {
    "argmax": "logits", "topk_ids": "logits", "heads.topk_ids": "heads.logits",
}  # fmt: skip
"""Roles of outputs that are the ids of the largest logits, and the role of those."""
Doubles = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Comparison:
    """Compares named outputs for one law of one graft. `dtype` is that of the activations."""

    who: str
    law: str
    dtype: str = "float32"

    @property
    def limit(self) -> float:
        """The largest relative difference that passes."""
        return TOLERANCE[self.dtype]

    def broken(self, name: str, by: str) -> LawBroken:
        """The error that says where the law does not hold."""
        return LawBroken(self.who, self.law, f"'{name}'", by)

    def outputs(self, got: Feed, expected: Feed, ports: Sequence[Port]) -> float:
        """Largest relative difference of all `expected` outputs, which `ports` describe. Raises
        LawBroken where one is missing, has another shape, exceeds the limit, or where there is
        nothing to compare."""
        if not expected:
            raise LawBroken(self.who, self.law, "outputs", "there is nothing to compare")
        worst, roles = 0.0, {p.name: p.role for p in ports if p.direction == "out"}
        scores = {role: name for name, role in roles.items()}
        for name, array in expected.items():
            if name not in got:
                raise self.broken(name, "the host's output is gone")
            of = IDS.get(roles.get(name, ""), "")
            logits = expected.get(scores.get(of, ""))
            worst = max(worst, self.output(name, got[name], array, logits))
        return worst

    def output(self, name: str, got: Array, expected: Array, logits: Array | None = None) -> float:
        """The largest relative difference of one output; integers must be equal, but for token ids
        whose `logits` are too close to tell apart."""
        gap = self.measure(name, got, expected, logits)
        if not gap <= self.limit:
            raise self.broken(name, f"{gap:.3g} > {self.limit:g}")
        return gap

    def measure(self, name: str, got: Array, expected: Array, logits: Array | None = None) -> float:
        """The same without a limit: for what is by design not equal. NaN is broken all the same."""
        if got.shape != expected.shape:
            raise self.broken(name, f"{got.shape} != {expected.shape}")
        if is_float(got) != is_float(expected):
            raise self.broken(name, f"{got.dtype} in place of {expected.dtype}")
        if is_float(expected):
            return self._floats(name, got, expected)
        if np.array_equal(got, expected):
            return 0.0
        if logits is None or logits.ndim - got.ndim not in (0, 1):
            places = int(np.sum(got != expected))
            raise self.broken(name, f"{places} of {expected.size} integers differ")
        return self._ids(name, got, expected, logits)

    def _floats(self, name: str, got: Array, expected: Array) -> float:
        if not expected.size:
            raise self.broken(name, "is empty: there is nothing to compare")
        largest = np.zeros(())
        for new, old in _few(got, expected):
            if np.isnan(new).any() or np.isnan(old).any():
                raise self.broken(name, "NaN")
            largest = np.maximum(largest, channels(old))
        scale = magnitudes(largest, FLOOR[self.dtype])
        gaps = [np.max(np.abs(new - old) / scale) for new, old in _few(got, expected)]
        return float(np.max(gaps))

    def _ids(self, name: str, got: Array, expected: Array, logits: Array) -> float:
        """How far apart the logits of differing token ids are: a near-tie may fall either way."""
        old, new = (ids if ids.ndim == logits.ndim else ids[..., None] for ids in (expected, got))
        scores = logits.astype(np.float64)
        apart = np.take_along_axis(scores, old, -1) - np.take_along_axis(scores, new, -1)
        return float(np.max(np.abs(apart)) / max(float(np.max(np.abs(scores))), 1e-30))


def activation_dtype(model: ir.Model) -> str:
    """The float type that a graph computes its residual stream in, as its facts say."""
    return read_facts(model).dtype if FACTS_KEY in model.metadata_props else "float32"


def written_slots(outputs: Feed, ports: Sequence[Port], feed: Feed) -> Feed:
    """`outputs` with those slots of their caches [B, K, S, D] that hold something after a step on
    `feed`: nobody sees the others."""
    cut, owners = dict(outputs), {port.name: port.owner for port in ports}
    for port in ports:
        if port.compare == "written" and port.direction == "out" and port.name in outputs:
            step = step_port(ports, owners[port.valid_by or ""])
            rows = 0 if step is None else feed[step.name].shape[1]
            slots = int(np.min(feed[port.valid_by or ""])) + rows
            cut[port.name] = outputs[port.name][:, :, :slots]
    return cut


def _few(got: Array, expected: Array) -> Iterator[tuple[Doubles, Doubles]]:
    """Both in fp64, a few rows (last axis but one) at a time; infinite in the same way: 0."""
    rows = got.shape[-2] if got.ndim > 1 else 1
    for part in few_rows(rows, got.size // rows):
        both = (a[..., part, :] if a.ndim > 1 else a for a in (got, expected))
        new, old = (a.astype(np.float64) for a in both)
        alike = np.isinf(new) & (new == old)
        yield np.where(alike, 0, new), np.where(alike, 0, old)


def channels(array: Doubles) -> Doubles:
    """The largest number of each channel (last axis; of a cache also its head), or of all where
    there are fewer than three axes; of as many axes as the array."""
    axes = (0, 2) if array.ndim == 4 else tuple(range(array.ndim - 1))
    return np.max(np.abs(array), axis=axes if array.ndim > 2 else None, keepdims=True)


def magnitudes(largest: Doubles, floor: float) -> Doubles:
    """What a difference is relative to, by the largest number of its channel: at least `floor`
    times the largest of all."""
    return np.maximum(np.maximum(largest, floor * np.max(largest)), 1e-30)


def is_float(array: Array) -> bool:
    """Whether an array holds floating-point numbers, those of ml_dtypes (bfloat16) included."""
    return array.dtype.kind == "f" or array.dtype.name in ("bfloat16", "float8_e4m3fn")
