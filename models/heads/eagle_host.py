"""An EAGLE or MTP head as a host: a small decoder whose graph is exported like any other."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import onnx_ir as ir

from graftline.facts import DecoderFacts, DraftBlockFacts, write_facts
from graftline.head_notes import NEXT_DOWN, TAPPED, write_draft_ids
from graftline.models.export.eagle_module import MASK_FEATURE, EagleDecoder, EagleShape
from graftline.models.heads.block import Block
from graftline.models.heads.eagle3 import Eagle3Settings
from graftline.models.heads.eagle_shapes import eagle_shape, module_tensors, our_name
from graftline.models.heads.head import FINAL, Head
from graftline.models.heads.head_module import export_module, own_model
from graftline.models.heads.mask_feature import mask_feature
from graftline.models.heads.vocabulary import DRAFT_IDS, LM_HEAD, drafted_rows
from graftline.models.host import Host, Watch
from graftline.ports import FEATURES

_Exported = tuple[ir.Model, frozenset[str]]
"""A graph without weights, and what those are called."""
PLACES = 64
"""Features in the table that the exported graph has in their place."""
EMBEDDING = "embedding.weight"


@dataclass(frozen=True)
class Shared:
    """What a head takes of its target, unread: the token embedding [V, H] and the lm_head [V, H].
    """

    embedding: ir.TensorProtocol
    lm_head: ir.TensorProtocol


def eagle_host(
    head: Head,
    target: DecoderFacts,
    shared: Shared,
    watch: Watch,
    config: Mapping[str, Any] | None = None,
) -> Host:
    """Export the head and point its weights into its own files and the target's, whose `config`
    says what the head's own does not. Raises CheckpointError."""
    (host,) = eagle_hosts([head], target, shared, watch, config)
    return host


def eagle_hosts(
    heads: Sequence[Head],
    target: DecoderFacts,
    shared: Shared,
    watch: Watch,
    config: Mapping[str, Any] | None = None,
) -> list[Host]:
    """The same of several heads; those of one shape are exported once. Raises CheckpointError."""
    known: list[tuple[EagleShape, _Exported]] = []
    found: list[Host] = []
    for head in heads:
        shape = eagle_shape(head, config)
        exported = next((one for other, one in known if other == shape), None)
        if exported is None:
            make = partial(EagleDecoder, shape, places=PLACES)
            exported = export_module(make, target.positions or 4096, watch)
            known.append((shape, exported))
        found.append(_host(head, shape, exported, target, shared))
    return found


def _host(
    head: Head, shape: EagleShape, exported: _Exported, target: DecoderFacts, shared: Shared
) -> Host:
    """The head of an exported graph without weights, which stays as it is."""
    own = module_tensors(head, shape)
    tensors = {EMBEDDING: shared.embedding, **own, LM_HEAD: drafted_rows(shared.lm_head, own)}
    graph, weights = exported[0].clone(), exported[1]
    tensors[FEATURES] = feature_table(shape.block.hidden, shape.masked)
    if shape.masked:
        tensors[MASK_FEATURE] = mask_feature(head)

    for name in sorted(weights):
        graph.graph.initializers[name].const_value = tensors[our_name(name)]
    kv_heads, head_size = shape.caches
    facts = DraftBlockFacts(
        vocabulary=shape.drafted, hidden=shape.block.hidden, layers=shape.layers,
        heads=shape.block.heads, kv_heads=kv_heads, head_size=head_size,
        positions=target.positions, normed_state=shape.norm_output,
        mask_token=getattr(head.settings, "mask_token", None),
        source=head.source.name,
        parameters=sum(math.prod(t.shape.numpy()) for t in head.tensors.values()),
    )  # fmt: skip
    write_facts(graph, facts)
    if (ids := tensors.get(DRAFT_IDS)) is not None:
        write_draft_ids(graph, ids.numpy(), shape.vocabulary)
    if head.taps != (FINAL,) or isinstance(head.settings, Eagle3Settings):
        keep_taps(graph, head, target.layers, shape.block, joined=not shape.fused)
    if shape.sampled:
        keep_beside(graph, NEXT_DOWN, tensors["layers.0.feature_down.weight"])
    own = own_model(partial(EagleDecoder, shape), tensors, shape.vocabulary, False)
    return Host(graph, facts, own=own)


def feature_table(width: int, masked: bool) -> ir.TensorProtocol:
    """Features that stand for the target's in the exported graph; with `masked` those of every
    third place are zeros, so that laws look at masks too."""
    table = np.random.default_rng(5).standard_normal((PLACES, width)).astype(np.float32)
    if masked:
        table[::3] = 0.0
    return ir.tensor(table, name=FEATURES)


def keep_beside(graph: ir.Model, name: str, tensor: ir.TensorProtocol) -> None:
    """Put a tensor into a head's graph that the graph itself does not read."""
    value = ir.Value(
        name=name, shape=ir.Shape(tensor.shape.numpy()), type=ir.TensorType(tensor.dtype),
        const_value=tensor,
    )  # fmt: skip
    graph.graph.register_initializer(value)


def keep_taps(
    graph: ir.Model, head: Head, layers: int, block: Block, joined: bool = True
) -> None:
    """Put beside the head's graph what its target makes of its hidden states for it; `joined`: of
    several, by an fc and norms of the head's."""
    names: dict[str, str] = {}
    if joined:
        names = {"fc.weight": "fc", "fc.bias": "fc.bias", "fc_norm.weight": "norm"}
        names |= {f"fc_norm.{i}.weight": f"norm.{i}" for i in range(len(head.taps))}
    for there, here in names.items():
        if (tensor := head.tensors.get(there)) is not None:
            keep_beside(graph, TAPPED + here, tensor)
    head.reading(layers, block.hidden, block.epsilon).write(graph)
