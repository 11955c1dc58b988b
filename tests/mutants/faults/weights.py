"""Weights: the quantizer, the loader, and the stamping of layers."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import onnx_ir as ir

from faults.graphs import attribute, constant, nodes, rewired
from faults.mutant import Apply, Edit, Mutant, Touched, after, instead
from graftline.models import blocks, hf, stamp, weights
from graftline.passes import GRAFTS, precision
from graftline.passes.weights import Matrix

QUANTIZE, LOWER = GRAFTS["quantize"], GRAFTS["lower-ort"]
INT4, INT8 = {"dtype": "int4"}, {"dtype": "int8"}
SOURCE = "graftline.weight"


def _quantized(model: ir.Model, layers: Iterable[int] | None, word: str = "") -> list[ir.Node]:
    """MatMulNBits of these layers (None: the head's), by the name of their matrix."""
    found: list[ir.Node] = []
    for node in nodes(model, "MatMulNBits"):
        name = node.metadata_props.get(SOURCE, "")
        words = ["lm_head"] if layers is None else [f"layers.{i}." for i in layers]
        if word in name and any(w in name for w in words):
            found.append(node)
    return found


def _operand(layers: Iterable[int] | None, place: int, change: Callable[[Any], Any],
             word: str = "") -> Edit:  # fmt: skip
    """data (1), scales (2) or zero points (3) of quantized matrices become change(them)."""

    def edit(model: ir.Model) -> int:
        done = 0
        for node in _quantized(model, layers, word):
            value = node.inputs[place]
            assert value is not None
            assert value.const_value is not None
            array = value.const_value.numpy()
            done += rewired(node, place, constant(model, change(array), array.dtype))
        return done

    return edit


def _garbage(scales: Any) -> Any:
    return np.random.default_rng(0).normal(size=scales.shape) * np.abs(scales).max()


def _scales_of_another_layer(source: int, target: int) -> Edit:
    def edit(model: ir.Model) -> int:
        ones, others = (_quantized(model, [i], "down") for i in (source, target))
        return sum(rewired(b, 2, a.inputs[2]) for a, b in zip(ones, others, strict=False))  # type: ignore[arg-type]

    return edit


def _turned_square(real: Any, touched: Touched) -> Any:
    """A square matrix is read along its columns."""

    def rows(self: Matrix) -> Any:
        array = real(self)
        if array.shape[0] != array.shape[1]:
            return array
        touched.count += 1
        return np.ascontiguousarray(array.T)

    return rows


def _level(model: ir.Model) -> int:
    return sum(attribute(n, "accuracy_level", 1) for n in nodes(model, "MatMulNBits"))


def _one_column(scales: Any) -> Any:
    new = scales.copy()
    new.reshape(-1)[: scales.size // 64] = 0
    return new


# the loader


def _types(name: str, wrong: ir.DataType) -> Apply:
    def apply(patch: Any, touched: Touched) -> None:
        table = {**weights.DTYPES, name: wrong}
        touched.count += 1
        patch.setattr(weights, "DTYPES", table)

    return apply


def _numbers(change: Callable[[str, Any], Any], word: str = "") -> Apply:
    """What the loader gives for a weight becomes change(its name, its numbers)."""

    def make(real: Any, touched: Touched) -> Any:
        def tensor(self: Any, key: str, name: str, shape: Any, dtype: Any) -> Any:
            found = real(self, key, name, shape, dtype)
            if word not in name:
                return found
            touched.count += 1
            array = found.numpy()
            return ir.Tensor(change(name, array).astype(array.dtype), name=name)

        return tensor

    return instead(weights.WeightSource, "tensor", make)


def _short_floats(name: str, array: Any) -> Any:
    """Only the upper 16 bits of a float32 are read."""
    bits = np.ascontiguousarray(array).view(np.uint32) & np.uint32(0xFFFF0000)
    return bits.view(np.float32)


def _low_byte_dropped(name: str, array: Any) -> Any:
    """Of the 7 bits behind a bf16's point the lower 4 are lost."""
    bits = np.ascontiguousarray(array, np.float32).view(np.uint32) & np.uint32(0xFFF00000)
    return bits.view(np.float32)


def _row_early(real: Any, touched: Touched) -> Any:
    """Matrices are read one row earlier than they lie."""

    def external(self: Any, name: str) -> Any:
        if len(self.shape) < 2 or "layers.1." not in name:
            return real(self, name)
        touched.count += 1
        row = self.length // self.shape[0]
        return ir.ExternalTensor(
            location=str(self.file), offset=self.offset - row, length=self.length,
            dtype=self.dtype, shape=ir.Shape(self.shape), name=name,
        )  # fmt: skip

    return external


def _key(old: str, new: str) -> Apply:
    """Names with `old` are looked up under `new`."""

    def make(real: Any, touched: Touched) -> Any:
        def key(built: Any, name: str, source: Any) -> Any:
            found = real(built, name, source)
            if found is None or old not in found:
                return found
            touched.count += 1
            return found.replace(old, new)

        return key

    return instead(hf, "_key", make)


# stamping


def _renamed(change: Callable[[str, int], int]) -> Apply:
    """A stamped layer reads the weight of the layer change(its name, its number)."""

    def make(real: Any, touched: Touched) -> Any:
        def rename(self: Any, name: str, layer: int) -> str:
            other: int = change(name, layer)
            touched.count += other != layer
            return real(self, name, other)

        return rename

    return instead(blocks.Layers, "rename", make)


def _stamped(change: Callable[[Any], Any]) -> Apply:
    """The list of the layers' kinds that is stamped from."""

    def make(real: Any, touched: Touched) -> Any:
        def stamped(model: Any, path: str, of: list[int], exported: int) -> list[str]:
            touched.count += 1
            return real(model, path, change(list(of)), exported)

        return stamped

    return instead(stamp, "stamp", make)


def _cloned(change: Callable[[int, list[ir.Node]], None]) -> Apply:
    """The nodes of a stamped layer."""

    def make(real: Any, touched: Touched) -> Any:
        def clone(*args: Any) -> Any:
            touched.count += 1
            out, made = real(*args)
            change(args[3], made)
            return out, made

        return clone

    return instead(stamp, "_clone", make)


def _epsilon(layer: int, made: list[ir.Node]) -> None:
    norms = [n for n in made if "Normalization" in n.op_type]
    if layer == 3:
        norms[0].attributes["epsilon"] = ir.AttrFloat32("epsilon", 1e-4)


def _other_kinds(of: list[int]) -> list[int]:
    """The last layer is stamped from a block of the other kind."""
    return [*of[:-1], 1 - of[-1]]


def _larger(real: Any, touched: Touched) -> Any:
    def rounded(tensor: Any, low: Any, name: str) -> Any:
        touched.count += 1
        array = real(tensor, low, name)
        return (array.astype(np.float32) * 1.01).astype(array.dtype)

    return rounded


WEIGHTS = [
    Mutant("garbage-scales-in-blocks-2-3-int4", "quantize", "scales are random in two later blocks",
           "llama", "closeness", after(QUANTIZE, _operand([2, 3], 2, _garbage)), INT4),
    Mutant("garbage-scales-in-blocks-2-3-int8", "quantize", "scales are random in two later blocks",
           "llama", "closeness", after(QUANTIZE, _operand([2, 3], 2, _garbage)), INT8),
    Mutant("garbage-scales-lowered-int8", "lower-ort", "scales are random in one later block",
           "llama", "whole", after(LOWER, _operand([3], 2, _garbage)), INT8),
    Mutant("zero-points-dropped", "quantize", "zero points are 0 in block 3",
           "llama", "closeness", after(QUANTIZE, _operand([3], 3, np.zeros_like)), INT4),
    Mutant("scales-of-another-block", "quantize", "down_proj of block 3 has block 2's scales",
           "llama", "closeness", after(QUANTIZE, _scales_of_another_layer(2, 3)), INT4),
    Mutant("scales-of-another-block-int8", "quantize", "down_proj of block 3 has block 2's scales",
           "llama", "closeness", after(QUANTIZE, _scales_of_another_layer(2, 3)), INT8),
    Mutant("quantized-along-columns", "quantize: Matrix.rows", "a square matrix is read turned",
           "llama", "closeness", instead(Matrix, "rows", _turned_square), INT8),
    Mutant("quantized-head-half-as-large", "quantize", "the lm_head's scales are halved",
           "llama", "closeness", after(QUANTIZE, _operand(None, 2, lambda s: s / 2)), INT8),
    Mutant("quantized-rows-zeroed", "quantize", "1 in 64 scales of block 4 is zero",
           "llama", "closeness", after(QUANTIZE, _operand([4], 2, _one_column)), INT8),
    Mutant("quantized-codes-shifted", "quantize", "codes of block 3 are one column off",
           "llama", "closeness",
           after(QUANTIZE, _operand([3], 1, lambda d: np.roll(d, 1, axis=0))), INT4),
    Mutant("accuracy-level-1", "quantize", "accuracy_level 1, not 4: activations stay float",
           "llama", "", after(QUANTIZE, _level), INT4),
    Mutant("half-read-as-brain", "models.weights.DTYPES", "fp16 bytes are taken for bf16",
           "half", "own-model", _types("F16", ir.DataType.BFLOAT16)),
    Mutant("brain-read-as-half", "models.weights.DTYPES", "bf16 bytes are taken for fp16",
           "brain", "own-model", _types("BF16", ir.DataType.FLOAT16)),
    Mutant("floats-cut-to-16-bits", "models.weights: WeightSource.tensor",
           "the lower half of every fp32 is lost",
           "llama", "own-model", _numbers(_short_floats)),
    Mutant("brain-cut-short", "models.weights: _cast", "the low bits of every bf16 are lost",
           "brain", "own-model", _numbers(_low_byte_dropped)),
    Mutant("offset-one-row-early", "models.weights: Stored.external",
           "matrices of layer 1 are read from one row earlier",
           "llama", "own-model", instead(weights.Stored, "external", _row_early)),
    Mutant("value-for-key", "models.hf: _key", "k_proj is filled from v_proj in layer 3",
           "llama", "own-model", _key("layers.3.self_attn.k_proj", "layers.3.self_attn.v_proj")),
    Mutant("gate-for-up", "models.hf: _key", "up_proj is filled from gate_proj",
           "llama", "own-model", _key("up_proj", "gate_proj")),
    Mutant("norm-of-the-other-place", "models.hf: _key",
           "the norm before the MLP is the one before attention",
           "llama", "own-model", _key("post_attention_layernorm", "input_layernorm")),
    Mutant("query-of-another-layer", "models.hf: _key", "layer 4 has layer 3's queries",
           "llama", "own-model", _key("layers.4.self_attn.q_proj", "layers.3.self_attn.q_proj")),
    Mutant("head-from-embedding", "models.hf: _key", "an untied head is filled from the embedding",
           "llama", "own-model", _key("lm_head", "model.embed_tokens")),
    Mutant("weight-turned", "models.hf: point", "o_proj of layer 1 is loaded turned",
           "llama", "own-model",
           _numbers(lambda n, a: np.ascontiguousarray(a.T), "layers.1.self_attn.o_proj")),
    Mutant("layer-stamped-twice", "models.stamp: _clone", "layer 3 has layer 2's weights",
           "llama", "own-model", _renamed(lambda n, i: 2 if i == 3 else i)),
    Mutant("down-of-another-layer", "models.stamp: _clone", "layer 3 has layer 4's down_proj",
           "llama", "own-model",
           _renamed(lambda n, i: 4 if i == 3 and "down_proj" in n else i)),
    Mutant("layers-in-another-order", "models.stamp: stamp", "layers 3 and 4 change places",
           "llama", "own-model", _renamed(lambda n, i: {3: 4, 4: 3}.get(i, i))),
    Mutant("last-layer-missing", "models.stamp: stamp", "one layer too few is stamped",
           "llama", "own-model", _stamped(lambda of: of[:-1])),
    Mutant("layer-too-many", "models.stamp: stamp", "the last layer is stamped twice",
           "llama", "own-model", _renamed(lambda n, i: min(i, 3))),
    Mutant("stamped-from-the-other-kind", "models.stamp: stamp",
           "a local layer is stamped from a global one",
           "gemma2", "own-model", _stamped(_other_kinds)),
    Mutant("epsilon-in-one-stamped-layer", "models.stamp: _clone",
           "epsilon 1e-4 in stamped layer 3",
           "llama", "own-model", _cloned(_epsilon)),
    Mutant("precision-scales-weights", "precision: _rounded", "fp16 weights are 1 % too large",
           "plain", "neutral", instead(precision, "_rounded", _larger),
           {"target": "ort-cuda", "dtype": "fp16"}),
]  # fmt: skip
