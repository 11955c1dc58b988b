"""The graphs of heads that passes put into the target's own: kept as exports, never opened."""

from __future__ import annotations

import onnx_ir as ir

from graftline.errors import CheckpointError
from graftline.facts import DecoderFacts, DraftHeadFacts, write_facts
from graftline.head_notes import AdapterNote, LowRankNote, RouterNote, TransferNote
from graftline.models.heads.head import Head
from graftline.models.heads.hidden_transfer import TransferSettings
from graftline.models.heads.kangaroo import THETA, KangarooSettings
from graftline.models.heads.lora_drop import LoraDropSettings
from graftline.models.heads.router import RouterSettings
from graftline.passes.grafts.adapter import adapter_graph
from graftline.passes.grafts.low_rank import corrections_graph
from graftline.passes.grafts.routers import routers_graph
from graftline.passes.grafts.transfers import transfers_graph


def graph_within(head: Head, host: DecoderFacts) -> ir.Model | None:
    """An adapter, corrections, matrices or routers alone, over states of such a host; None of other
    heads. Raises CheckpointError."""
    heads = layers = 1
    match head.settings:
        case KangarooSettings(block=block):
            model, hidden = _adapter(head, head.settings, host), block.hidden
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
    return adapter_graph(head.tensors, note, THETA, host.positions)
