"""The quantizer: scales, zero points and codes of the wrong block, or garbage."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

import numpy as np
import onnx_ir as ir

from faults.graphs import (
    attribute,
    constant,
    nodes,
    rewired,
)
from faults.mutant import Edit, Mutant, Touched, after, instead
from faults.passes import LOWER, QUANTIZE
from graftline.contrib_ops.quantized import unpack
from graftline.passes.graph.weights import Matrix
from graftline.passes.lower import precision
from graftline.passes.lower.quantize import quantize
from graftline.passes.lower.quantize.rounding import Moments

INT4 = {"dtype": "int4"}
INT8 = {"dtype": "int8"}
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


def _read_as_4_bits(model: ir.Model) -> int:
    """An 8-bit matrix is read as one of 4 bits."""
    wide = [n for n in _quantized(model, None) if n.attributes["bits"].as_int() == 8]
    return sum(attribute(n, "bits", 4) for n in wide)


def _coarser_head(real: Any, touched: Touched) -> Any:
    """The head has codes of 4 bits where 8 were asked for, each in a byte of its own."""

    def nearest_codes(target: Any, bits: int, method: str = "rtn") -> Any:
        if bits != 8:
            return real(target, bits, method)
        touched.count += 1
        coarse = real(target, 4, method)
        blocks = coarse.packed.scales.shape[1]
        zeros = unpack(coarse.packed.zeros, 4)[:, :blocks]
        packed = replace(coarse.packed, data=unpack(coarse.packed.data, 4), zeros=zeros)
        return replace(coarse, packed=packed, bits=8)

    return nearest_codes


def _codes_of(layers: Iterable[int], change: Callable[[Any], Any]) -> Edit:
    """Codes of one matrix of 4 bits in these layers become change(them)."""

    def edit(model: ir.Model) -> int:
        done = 0
        for node in _quantized(model, layers, "down"):
            value = node.inputs[1]
            if node.attributes["bits"].as_int() != 4 or value is None:
                continue
            array = value.const_value.numpy()  # type: ignore[union-attr]
            done += rewired(node, 1, constant(model, change(array), array.dtype))
        return done

    return edit


def _away(real: Any, touched: Touched) -> Any:
    """What a column loses is taken from the others once more, in place of made good."""

    def made(self: Any, inputs: Any, block: int) -> None:
        real(self, inputs, block)
        touched.count += 1
        factor = self.factor
        self.factor = 2 * np.diag(np.diag(factor)) - factor

    return made


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


def _larger(real: Any, touched: Touched) -> Any:
    def rounded(tensor: Any, low: Any, name: str) -> Any:
        touched.count += 1
        array = real(tensor, low, name)
        return (array.astype(np.float32) * 1.01).astype(array.dtype)

    return rounded


QUANTIZER = [
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
           "llama", "whole", instead(Matrix, "rows", _turned_square), INT8),
    Mutant("quantized-head-half-as-large", "quantize", "the lm_head's scales are halved",
           "llama", "closeness", after(QUANTIZE, _operand(None, 2, lambda s: s / 2)), INT8),
    Mutant("quantized-rows-zeroed", "quantize", "1 in 64 scales of block 4 is zero",
           "llama", "closeness", after(QUANTIZE, _operand([4], 2, _one_column)), INT8),
    Mutant("quantized-codes-shifted", "quantize", "codes of block 3 are one column off",
           "llama", "closeness",
           after(QUANTIZE, _operand([3], 1, lambda d: np.roll(d, 1, axis=0))), INT4),
    Mutant("eight-bits-read-as-four", "quantize", "the lm_head's 8-bit codes are read as 4",
           "llama", "closeness", after(QUANTIZE, _read_as_4_bits), INT4),
    Mutant("head-of-the-wrong-width", "quantize: nearest_codes", "an 8-bit matrix has 16 levels",
           "llama", "closeness", instead(quantize, "nearest_codes", _coarser_head), INT4),
    Mutant("compensated-codes-negated", "quantize", "codes of down_proj in block 3 are inverted",
           "llama", "closeness", after(QUANTIZE, _codes_of([3], np.invert)), INT4),
    Mutant("compensation-of-the-wrong-sign", "rounding: Moments", "errors are doubled, not undone",
           "llama", "closeness", instead(Moments, "__init__", _away), INT4),
    Mutant("accuracy-level-1", "quantize", "accuracy_level 1, not 4: activations stay float",
           "llama", "", after(QUANTIZE, _level), INT4),
    Mutant("precision-scales-weights", "precision: _rounded", "fp16 weights are 1 % too large",
           "plain", "neutral", instead(precision, "_rounded", _larger),
           {"target": "ort-cuda", "dtype": "fp16"}),
]  # fmt: skip
