"""The decoder layer in front of Hydra++'s heads alone, a layer of its host's own kind."""

from __future__ import annotations

from typing import NoReturn

import numpy as np
import onnx_ir as ir

from graftline.build.head_graph import widened
from graftline.errors import CheckpointError
from graftline.facts import decoder_facts
from graftline.head_notes import AdapterNote
from graftline.models.heads.head import Head
from graftline.passes.anchors.anchors import with_role
from graftline.passes.grafts.adapter import Tables, adapter_graph
from graftline.passes.graph.weights import constant, tensor_of

NAMES = {
    "attention_norm": "norm", "query": "query", "key": "key", "value": "value",
    "output": "output", "mlp_norm": "mlp_norm", "gate": "gate", "up": "up", "down": "down",
    "final_norm": "final_norm",
}  # fmt: skip
"""Parts of the layer, and what an adapter's graph calls them."""


def prefix_graph(head: Head, canonical: ir.Model) -> ir.Model:
    """The layer over hidden states [B, N, H] of its host, whose numbers of heads, rotary positions
    and epsilon it has (as the published code makes it, of the host's config): see `adapter_graph`.
    Raises CheckpointError for a host of another kind than Llama's."""
    host = decoder_facts(canonical)
    note = AdapterNote(
        host.heads, host.kv_heads, host.head_size, _epsilon(head, canonical), prefix=True
    )
    named = {f"layer.{name}.weight": f"adapter.{own}" for name, own in NAMES.items()}
    tensors = {own: head.tensors[name] for name, own in named.items()}
    model = adapter_graph(tensors, note, _tables(head, canonical, host.head_size))
    head.reading(host.layers, host.hidden).write(model)
    return model


def _epsilon(head: Head, canonical: ir.Model) -> float:
    """Of the host's norms, by its last."""
    (norm,) = with_role(canonical.graph, "final_norm") or [None]
    if norm is None or norm.op_type != "RMSNormalization":
        _refuse(head, "no RMS norm behind its last block")
    return norm.attributes.get_float("epsilon", 1e-5)


def _tables(head: Head, canonical: ir.Model, size: int) -> Tables:
    """The host's rotary tables, the same for all its layers."""
    nodes = [n for n in canonical.graph if n.op_type == "RotaryEmbedding"]
    if not nodes:
        _refuse(head, "no rotary positions")
    for node in nodes:
        part = node.attributes.get_int("rotary_embedding_dim", 0)
        if node.attributes.get_int("interleaved", 0) or part not in (0, size):
            _refuse(head, "rotary positions of another form")
    pairs = {(node.inputs[1], node.inputs[2]) for node in nodes}
    found = [tuple(constant(value) for value in pair) for pair in pairs]
    cos, sin = found[0]
    if cos is None or sin is None:
        _refuse(head, "rotary positions that are computed")
    tables = tensor_of(cos), tensor_of(sin)
    for pair in found[1:]:
        for one, other in zip(pair, tables, strict=True):
            if one is None or not np.array_equal(tensor_of(one).numpy(), other.numpy()):
                _refuse(head, "rotary positions that differ from layer to layer")
    return widened(tables[0], "adapter.cos"), widened(tables[1], "adapter.sin")


def _refuse(head: Head, what: str) -> NoReturn:
    raise CheckpointError(
        f"{head.source}: prefix-mlp heads stand behind a layer of Llama's kind with their host's "
        f"sizes and rotary positions, and this host has {what}; give heads of another kind"
    )
