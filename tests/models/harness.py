"""Run a raw graph on ONNX Runtime, and say when two graphs are the same graph."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort

from graftline.models.decoder import TinyDecoder
from tests.rounding import assert_same_sums, decoder_terms

VOCABULARY = 96


def feed(batch: int = 2, rows: int = 21, seed: int = 0) -> dict[str, Any]:
    """Seeded ids longer than every tiny window, positions from 0, nothing padded."""
    ids = np.random.default_rng(seed).integers(3, VOCABULARY, (batch, rows))
    positions = np.tile(np.arange(rows), (batch, 1))
    return {"tokens": ids, "positions": positions, "attention_mask": np.ones_like(ids)}


def logits(model: ir.Model, values: dict[str, Any]) -> Any:
    """The graph's first output, weights read through the initializers themselves."""
    proto = ir.to_proto(model)
    for tensor in proto.graph.initializer:
        value = model.graph.initializers[tensor.name].const_value
        assert value is not None
        tensor.CopyFrom(ir.to_proto(ir.Tensor(value.numpy(), name=tensor.name)))
    session = ort.InferenceSession(proto.SerializeToString())
    return session.run(None, {i.name: values[i.name] for i in session.get_inputs()})[0]


def reference(folder: Path, values: dict[str, Any]) -> Any:
    """transformers' own logits, by its plainest attention."""
    import torch
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    with torch.no_grad():
        return model(torch.tensor(values["tokens"])).logits.numpy()


def assert_same_logits(got: Any, want: Any, layers: int = 3) -> None:
    """Of a tiny checkpoint and the rows of `feed`: equal but for rounding."""
    shape = TinyDecoder(layers, hidden=48, heads=4, head_size=12, mlp=80)
    assert_same_sums(got, want, decoder_terms(shape, seen=want.shape[1]))


def meaning(model: ir.Model) -> tuple[Counter[int], list[int]]:
    """Hashes of all nodes (what they compute, down to weight names) and of the outputs."""
    known: dict[ir.Value | None, int] = {None: 0}
    for value in model.graph.inputs:
        known[value] = hash(("input", value.name))
    for value in model.graph.initializers.values():
        data = value.const_value
        small = data is not None and data.size < 64 and not isinstance(data, ir.ExternalTensor)
        content = data.tobytes() if small and data is not None else value.name
        known[value] = hash(("constant", str(value.shape), content))
    nodes: Counter[int] = Counter()
    for node in model.graph:
        attributes = tuple(sorted((k, repr(a.value)) for k, a in node.attributes.items()))
        mark = hash((node.op_type, attributes, tuple(known[v] for v in node.inputs)))
        nodes[mark] += 1
        for index, out in enumerate(node.outputs):
            known[out] = hash((mark, index))
    return nodes, [known[v] for v in model.graph.outputs]


def save(model: ir.Model, file: Path, external: str | None = None) -> Path:
    """Write a self-contained .onnx, or one with its weights in `external` beside it."""
    proto = ir.to_proto(model)
    for tensor in proto.graph.initializer:
        value = model.graph.initializers[tensor.name].const_value
        assert value is not None
        tensor.CopyFrom(ir.to_proto(ir.Tensor(value.numpy(), name=tensor.name)))
    if external is None:
        onnx.save(proto, file)
    else:
        onnx.save(proto, file, save_as_external_data=True, location=external, size_threshold=0)
    return file
