"""An EAGLE head as a host: a small decoder whose graph is exported like any other."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from graftline.errors import CheckpointError
from graftline.evaluate import Feed
from graftline.facts import DecoderFacts, DraftBlockFacts, write_facts
from graftline.head_notes import NEVER, TAPPED, TapReading, write_draft_ids
from graftline.models.export.eagle_module import MASK_FEATURE, EagleDecoder, EagleShape
from graftline.models.export.export import export
from graftline.models.heads.block import Block
from graftline.models.heads.eagle import EagleSettings
from graftline.models.heads.eagle3 import Eagle3Settings
from graftline.models.heads.head import Head, Tap
from graftline.models.heads.mask_feature import mask_feature
from graftline.models.heads.vocabulary import DRAFT_IDS
from graftline.models.host import Host, Watch
from graftline.models.reference import Own, OwnModel
from graftline.ports import FEATURES
from graftline.tensors import numbers

PLACES = 64
"""Features in the table that the exported graph has in their place."""
EMBEDDING, LM_HEAD = "embedding.weight", "lm_head.weight"
_PARTS = {
    "attention.q_proj": "query", "attention.k_proj": "key", "attention.v_proj": "value",
    "attention.o_proj": "output", "mlp.gate_proj": "gate", "mlp.up_proj": "up",
    "mlp.down_proj": "down",
}  # fmt: skip
_PART = re.compile("|".join(re.escape(name) for name in _PARTS))


@dataclass(frozen=True)
class Shared:
    """What a head takes of its target, unread: the token embedding [V, H] and the lm_head [V, H].
    """

    embedding: ir.TensorProtocol
    lm_head: ir.TensorProtocol


def eagle_shape(head: Head) -> EagleShape:
    """What the module of a head is made of. Raises CheckpointError for what it does not host."""
    settings = head.settings
    if isinstance(settings, Eagle3Settings):
        return _eagle3_shape(head, settings)
    if not isinstance(settings, EagleSettings):
        raise CheckpointError(
            f"{head.source}: a head of the family '{head.family}', which this version reads and "
            "does not build yet; give a Medusa or an EAGLE head"
        )
    block = settings.block
    if head.taps != (Tap(-1, normed=True),):
        raise CheckpointError(
            f"{head.source}: the head reads {', '.join(map(str, head.taps))}; only EAGLE heads on "
            "the final norm's output are built yet"
        )
    _refuse(head, block)
    return EagleShape(
        block, settings.layers, settings.vocabulary, settings.vocabulary, fused=True,
        fc_bias=settings.fc_bias, normed=False,
    )  # fmt: skip


def _eagle3_shape(head: Head, settings: Eagle3Settings) -> EagleShape:
    _refuse(head, settings.block)
    odd = {
        "sliding windows": any(settings.windows),
        "further parallel heads": settings.parallel is not None,
        "the final norm's output among its taps": any(tap.normed for tap in head.taps),
    }
    if found := [what for what, there in odd.items() if there]:
        raise CheckpointError(
            f"{head.source}: a head with {found[0]}, which this version reads and does not build "
            "yet; give a plain EAGLE-3 head"
        )
    return EagleShape(
        settings.block, settings.layers, settings.vocabulary, settings.draft_vocabulary,
        fused=False, residual_normed=settings.residual_normed, norm_output=settings.norm_output,
        masked=settings.mask_token is not None,
    )  # fmt: skip


def _refuse(head: Head, block: Block) -> None:
    """Raise CheckpointError for a block that is no plain Llama layer."""
    odd = {
        "norms of queries and keys": block.query_norm,
        "gated attention": block.gated,
        f"norms over w + {block.norm_offset}": bool(block.norm_offset),
        f"rotary positions on {block.rope.size} of {block.head_size} numbers":
            block.rope.size != block.head_size,
        "interleaved rotary pairs": block.rope.interleaved,
    }  # fmt: skip
    if found := [what for what, there in odd.items() if there]:
        raise CheckpointError(
            f"{head.source}: layers with {found[0]}, which this version reads and does not build "
            "yet; give a head of plain Llama layers"
        )


def eagle_host(head: Head, target: DecoderFacts, shared: Shared, watch: Watch) -> Host:
    """Export the head and point its weights into its own files and the target's. Raises
    CheckpointError."""
    shape = eagle_shape(head)
    tensors = {EMBEDDING: shared.embedding, LM_HEAD: shared.lm_head, **head.tensors}
    graph, weights = _exported(shape, target.positions or 4096, watch)
    tensors[FEATURES] = feature_table(shape.block.hidden, shape.masked)
    if shape.masked:
        tensors[MASK_FEATURE] = mask_feature(head)

    for name in sorted(weights):
        graph.graph.initializers[name].const_value = tensors[our_name(name)]
    block = shape.block
    facts = DraftBlockFacts(
        vocabulary=shape.drafted, hidden=block.hidden, layers=shape.layers, heads=block.heads,
        kv_heads=block.kv_heads, head_size=block.head_size, positions=target.positions,
        normed_state=shape.norm_output, mask_token=getattr(head.settings, "mask_token", None),
        source=head.source.name,
        parameters=sum(math.prod(t.shape.numpy()) for t in head.tensors.values()),
    )  # fmt: skip
    write_facts(graph, facts)
    if (ids := tensors.get(DRAFT_IDS)) is not None:
        write_draft_ids(graph, ids.numpy(), shape.vocabulary)
    if isinstance(head.settings, Eagle3Settings):
        keep_taps(graph, head, target.layers, block)
    return Host(graph, facts, own=_own_model(shape, tensors))


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


def keep_taps(graph: ir.Model, head: Head, layers: int, block: Block) -> None:
    """Put beside the head's graph what its target makes of its hidden states for it."""
    names = {"fc.weight": "fc", "fc.bias": "fc.bias", "fc_norm.weight": "norm"}
    names |= {f"fc_norm.{i}.weight": f"norm.{i}" for i in range(len(head.taps))}
    for there, here in names.items():
        if (tensor := head.tensors.get(there)) is not None:
            keep_beside(graph, TAPPED + here, tensor)
    read = tuple(tap.index(layers) for tap in head.taps)
    TapReading(read, block.hidden, block.epsilon).write(graph)


def _exported(shape: EagleShape, positions: int, watch: Watch) -> tuple[ir.Model, frozenset[str]]:
    """The raw graph without weights, and what its weights are called."""
    from accelerate import init_empty_weights

    with init_empty_weights(include_buffers=False):
        module = EagleDecoder(shape, positions, places=PLACES)
    exported = export(module.eval(), watch)
    return exported.model, exported.weights


def our_name(parameter: str) -> str:
    """What a parameter of the module is called among a head's tensors."""
    return _PART.sub(lambda found: _PARTS[found[0]], parameter)


def _own_model(shape: EagleShape, tensors: Mapping[str, ir.TensorProtocol]) -> OwnModel:
    """The module itself, run by torch: ids and features [B, N, H] in, logits of the target's ids
    out."""

    def run(feed: Feed, say: Watch) -> Own | str:
        import torch

        module = EagleDecoder(shape, feed["tokens"].shape[1])
        state: dict[str, Any] = {
            name: torch.from_numpy(np.array(numbers(tensors[our_name(name)]), np.float32))
            for name in module.state_dict()
        }
        module.load_state_dict(state, assign=True)
        tokens, features = (torch.from_numpy(feed[name].copy()) for name in ("tokens", FEATURES))
        places = torch.arange(tokens.shape[1])[None].expand_as(tokens)
        with torch.no_grad():
            out = module.eval()(tokens, None, places, features)
        logits, ids = out.logits[0].numpy(), tensors.get(DRAFT_IDS)
        if ids is not None:
            drafted = logits
            logits = np.full((len(drafted), shape.vocabulary), NEVER, np.float32)
            logits[:, ids.numpy()] = drafted
        return Own(logits, {0: out.state[0].numpy()})

    return run
