"""The graphs of heads that passes put into the target's own: kept as exports, never opened."""

from __future__ import annotations

import onnx_ir as ir

from graftline.build.prefix_graph import prefix_graph
from graftline.errors import CheckpointError
from graftline.facts import DecoderFacts, DraftHeadFacts, decoder_facts, write_facts
from graftline.head_notes import (
    AcceleratorNote,
    AdapterNote,
    LowRankNote,
    RouterNote,
    TransferNote,
)
from graftline.models.heads.head import Head
from graftline.models.heads.hidden_transfer import TransferSettings
from graftline.models.heads.hydra import HydraSettings, is_prefixed
from graftline.models.heads.kangaroo import THETA, KangarooSettings
from graftline.models.heads.lora_drop import LoraDropSettings
from graftline.models.heads.m2r2 import AcceleratorSettings
from graftline.models.heads.router import RouterSettings
from graftline.passes.grafts.accelerators import accelerators_graph
from graftline.passes.grafts.adapter import adapter_graph, rotary_tables
from graftline.passes.grafts.low_rank import corrections_graph
from graftline.passes.grafts.routers import routers_graph
from graftline.passes.grafts.transfers import transfers_graph


def graph_within(head: Head, canonical: ir.Model) -> ir.Model | None:
    """What passes put into the target's own graph, alone: an adapter, accelerators, corrections,
    matrices, routers or the layer in front of heads, over states of such a host; None of other
    heads. Raises CheckpointError."""
    heads = layers = 1
    host = decoder_facts(canonical)
    match head.settings:
        case HydraSettings(hidden=hidden) if is_prefixed(head):
            model = prefix_graph(head, canonical)
        case KangarooSettings(block=block):
            model, hidden = _adapter(head, head.settings, host), block.hidden
        case AcceleratorSettings(exit=layers, hidden=hidden, epsilon=epsilon):
            model = accelerators_graph(head.tensors, AcceleratorNote(layers, epsilon))
        case LoraDropSettings(layers=blocks, hidden=hidden):
            model, layers = corrections_graph(head.tensors, LowRankNote(blocks)), len(blocks)
        case TransferSettings(count=heads, blocks=behind, hidden=hidden):
            model = transfers_graph(head.tensors, TransferNote(behind, heads))
        case RouterSettings(layers=blocks, hidden=hidden):
            model, layers = routers_graph(head.tensors, RouterNote(blocks)), len(blocks)
        case _:
            return None
    facts = DraftHeadFacts(
        hidden, host.vocabulary, heads, layers, shared=True, source=head.source.name
    )
    write_facts(model, facts)
    return model


def _adapter(head: Head, settings: KangarooSettings, host: DecoderFacts) -> ir.Model:
    """The graph of an adapter, for as many positions as its host knows."""
    if not host.positions:
        raise CheckpointError(
            f"{head.source}: the host does not say how many positions it knows, of which the "
            "adapter's rotary tables need one row each; give a checkpoint that does"
        )
    block = settings.block
    note = AdapterNote(block.heads, block.kv_heads, block.head_size, block.epsilon)
    return adapter_graph(head.tensors, note, rotary_tables(block.head_size, THETA, host.positions))
