"""The loader: other types, offsets, names."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as ir

from faults.mutant import Apply, Mutant, Touched, instead
from graftline.models import hf, weights


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


LOADER = [
    Mutant("half-read-as-brain", "models.weights.DTYPES", "fp16 bytes are taken for bf16",
           "half", "checkpoint", _types("F16", ir.DataType.BFLOAT16)),
    Mutant("brain-read-as-half", "models.weights.DTYPES", "bf16 bytes are taken for fp16",
           "brain", "chunked or checkpoint", _types("BF16", ir.DataType.FLOAT16)),
    Mutant("floats-cut-to-16-bits", "models.weights: WeightSource.tensor",
           "the lower half of every fp32 is lost",
           "llama", "checkpoint", _numbers(_short_floats)),
    Mutant("brain-cut-short", "models.weights: _cast", "the low bits of every bf16 are lost",
           "brain", "checkpoint", _numbers(_low_byte_dropped)),
    Mutant("offset-one-row-early", "models.weights: Stored.external",
           "matrices of layer 1 are read from one row earlier",
           "llama", "checkpoint", instead(weights.Stored, "external", _row_early)),
    Mutant("value-for-key", "models.hf: _key", "k_proj is filled from v_proj in layer 3",
           "llama", "checkpoint", _key("layers.3.self_attn.k_proj", "layers.3.self_attn.v_proj")),
    Mutant("gate-for-up", "models.hf: _key", "up_proj is filled from gate_proj",
           "llama", "checkpoint", _key("up_proj", "gate_proj")),
    Mutant("norm-of-the-other-place", "models.hf: _key",
           "the norm before the MLP is the one before attention",
           "llama", "checkpoint", _key("post_attention_layernorm", "input_layernorm")),
    Mutant("query-of-another-layer", "models.hf: _key", "layer 4 has layer 3's queries",
           "llama", "checkpoint", _key("layers.4.self_attn.q_proj", "layers.3.self_attn.q_proj")),
    Mutant("head-from-embedding", "models.hf: _key", "an untied head is filled from the embedding",
           "llama", "checkpoint", _key("lm_head", "model.embed_tokens")),
    Mutant("weight-turned", "models.hf: point", "o_proj of layer 1 is loaded turned",
           "llama", "checkpoint",
           _numbers(lambda n, a: np.ascontiguousarray(a.T), "layers.1.self_attn.o_proj")),
]  # fmt: skip
