"""A decoder whose weights lie in a safetensors file, in the precision of published checkpoints."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from graftline.facts import decoder_facts
from graftline.models.decoder import TinyDecoder
from graftline.models.host import Host
from graftline.models.weights import read_headers

NAMES = {"BF16": ir.DataType.BFLOAT16, "F16": ir.DataType.FLOAT16, "F32": ir.DataType.FLOAT}


@dataclass
class FileCheckpoint:
    """TinyDecoder with its matrices in `path`, written as `dtype`; the lm_head is the embedding."""

    path: Path
    dtype: str = "BF16"
    decoder: TinyDecoder = field(
        default_factory=lambda: TinyDecoder(
            vocabulary=512, hidden=128, head_size=32, mlp=512, positions=256
        )
    )

    def host(self, full_export: bool = False, watch: Any = None) -> Host:
        model = self.decoder.build()
        named = {n: v for n, v in model.graph.initializers.items() if len(v.shape or ()) == 2}
        del named["rotary.cos"], named["rotary.sin"]
        write_safetensors(
            self.path, {n: v.const_value.numpy() for n, v in named.items() if v.const_value},
            self.dtype,
        )  # fmt: skip
        source = read_headers([self.path])
        for name, value in named.items():
            assert value.const_value is not None
            key = "embed.weight" if name == "lm_head" else name
            shape = tuple(value.const_value.shape.numpy())
            if shape == source.stored[key].shape:
                value.const_value = source.tensor(key, name, shape, ir.DataType.FLOAT)
        return Host(model, decoder_facts(model), states=source.states())


def write_safetensors(file: Path, arrays: dict[str, Any], dtype: str) -> None:
    """Arrays as one safetensors file of `dtype` (bf16 has no numpy type that safetensors takes)."""
    rows: dict[str, Any] = {}
    raw = b""
    for name, array in arrays.items():
        data = np.ascontiguousarray(array.astype(NAMES[dtype].numpy())).tobytes()
        extent = [len(raw), len(raw) + len(data)]
        rows[name] = {"dtype": dtype, "shape": list(array.shape), "data_offsets": extent}
        raw += data
    header = json.dumps(rows).encode()
    header += b" " * (-len(header) % 8)
    file.write_bytes(len(header).to_bytes(8, "little") + header + raw)
