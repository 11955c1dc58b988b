"""The targets that ONNX Runtime runs, and how a pipeline ends for each of their precisions."""

from __future__ import annotations

from collections.abc import Mapping

from graftline.errors import BackendError, GraftlineError, nearest

CPU, CUDA = "ort-cpu", "ort-cuda"
QUANTIZE = {
    "int8": "quantize{bits=8,embedding=true}",
    "int4": "quantize{bits=4,algorithm=gptq,block=0,head_bits=8,wide=0.41,embedding=true}",
}
TARGETS: Mapping[str, Mapping[str, str]] = {
    CPU: {dtype: "lower-ort" for dtype in ("fp32", "int8", "int4")},
    CUDA: {
        "fp32": "lower-ort{provider=cuda}",
        "fp16": "lower-ort{provider=cuda,dtype=fp16}",
        "bf16": "lower-ort{provider=cuda,dtype=bf16}",
        "int8": "lower-ort{provider=cuda,dtype=fp16}",
        "int4": "lower-ort{provider=cuda,dtype=fp16}",
    },
}
"""target -> precision -> its lowering. On a GPU quantized weights go with fp16 activations."""


def ending(target: str, dtype: str, quantizer: str | None) -> str:
    """The passes after the grafts. Raises BackendError for an unknown target, GraftlineError for a
    precision it does not have."""
    if target not in TARGETS:
        raise BackendError(f"unknown target '{target}'{nearest(target, TARGETS)}")
    known = TARGETS[target]
    if dtype not in known:
        raise GraftlineError(f"{target} has no dtype '{dtype}'{nearest(dtype, known)}")
    quantize = QUANTIZE.get(dtype, "")
    if quantizer is not None:
        if not quantize:
            raise GraftlineError("--quantizer needs --dtype int8 or int4")
        quantize = quantize.replace("algorithm=gptq,", "").replace("}", f",algorithm={quantizer}}}")
    if target != CPU:  # looking rows up in integers is a kernel of the CPU provider
        quantize = quantize.replace(",embedding=true", "")
    return " | ".join(filter(None, [quantize, known[dtype]]))
