"""A DFlash head as a host: a small decoder whose graph is exported like any other."""

from __future__ import annotations

import math
from functools import partial

import onnx_ir as ir

from graftline.errors import CheckpointError
from graftline.facts import DecoderFacts, DraftBlockFacts, write_facts
from graftline.head_notes import MARKOV, MarkovNote, write_draft_ids
from graftline.models.export.dflash_module import DFlashDecoder, DFlashShape
from graftline.models.heads.dflash import DFlashSettings
from graftline.models.heads.eagle_host import (
    EMBEDDING,
    PLACES,
    Shared,
    feature_table,
    keep_beside,
    keep_taps,
)
from graftline.models.heads.eagle_shapes import DYNAMIC, our_name
from graftline.models.heads.head import Head
from graftline.models.heads.head_module import export_module, own_model
from graftline.models.heads.vocabulary import DRAFT_IDS, LM_HEAD, drafted_rows
from graftline.models.host import Host, Watch
from graftline.ports import FEATURES


def dflash_shape(head: Head) -> DFlashShape:
    """What the module of a head is made of. Raises CheckpointError for what it does not host."""
    settings = head.settings
    assert isinstance(settings, DFlashSettings)
    block = settings.block
    odd = {
        "convolutions (DFlash2)": settings.convolution is not None,
        "a selector of candidates (DFlash2)": settings.selector is not None,
        "a confidence head, or the name DSpark, and no Markov head": settings.markov is None
            and (settings.confidence is not None or head.family == "dspark"),
        "a Markov head and a recurrent correction":
            settings.markov is not None and settings.domino is not None,
        "a recurrent correction (Domino) of another vocabulary than its host's":
            settings.domino is not None and settings.draft_vocabulary != settings.vocabulary,
        "a recurrent correction (Domino) whose shift_label and sample_from_anchor contradict":
            settings.domino is not None and settings.domino.shifted != settings.anchor_drafts,
        "a Markov head whose first row does not draft":
            settings.markov is not None and not settings.anchor_drafts,
        "layers of which some see a block whole and others only backwards":
            len(set(settings.causal)) > 1,
        "windows smaller than its block": any(
            0 < window < settings.block_size and not causal
            for window, causal in zip(settings.windows, settings.causal, strict=True)
        ),
        "the final norm's output among its taps": any(tap.normed for tap in head.taps),
        "scaled or soft-capped logits or embeddings": (
            settings.output_multiplier, settings.softcap, settings.embedding_scale
        ) != (1.0, 0.0, 1.0),
        "gated attention": block.gated,
        f"norms over w + {block.norm_offset}": bool(block.norm_offset),
        f"rotary positions on {block.rope.size} of {block.head_size} numbers":
            block.rope.size != block.head_size,
        "interleaved rotary pairs": block.rope.interleaved,
        "rotary frequencies that change with the length of a text (rope_type=dynamic)":
            block.rope.kind == DYNAMIC,
    }  # fmt: skip
    if found := [what for what, there in odd.items() if there]:
        raise CheckpointError(
            f"{head.source}: a head with {found[0]}, which this version reads and does not build "
            "yet; give a plain DFlash, DSpark or Domino head"
        )
    return DFlashShape(
        block, settings.layers, settings.windows, settings.vocabulary, settings.draft_vocabulary,
        "layers.0.output.bias" in head.tensors,
    )  # fmt: skip


def dflash_host(head: Head, target: DecoderFacts, shared: Shared, watch: Watch) -> Host:
    """Export the head and point its weights into its own files and the target's. Raises
    CheckpointError."""
    shape, settings = dflash_shape(head), head.settings
    tensors = {EMBEDDING: shared.embedding, **head.tensors}
    tensors[LM_HEAD] = drafted_rows(shared.lm_head, tensors)
    tensors[FEATURES] = feature_table(shape.block.hidden, masked=True)
    make = partial(DFlashDecoder, shape, places=PLACES)
    graph, weights = export_module(make, target.positions or 4096, watch)
    for name in sorted(weights):
        graph.graph.initializers[name].const_value = tensors[our_name(name)]
    block = shape.block
    facts = DraftBlockFacts(
        vocabulary=shape.drafted, hidden=block.hidden, layers=shape.layers, heads=block.heads,
        kv_heads=block.kv_heads, head_size=block.head_size, positions=target.positions,
        mask_token=settings.mask_token, normed_state=True, block=settings.block_size,
        causal=settings.causal[0], anchor_drafts=settings.anchor_drafts, source=head.source.name,
        parameters=sum(math.prod(t.shape.numpy()) for t in head.tensors.values()),
    )  # fmt: skip
    write_facts(graph, facts)
    if (ids := tensors.get(DRAFT_IDS)) is not None:
        write_draft_ids(graph, ids.numpy(), shape.vocabulary)
    keep_taps(graph, head, target.layers, block)
    _keep_markov(graph, head)
    own = own_model(partial(DFlashDecoder, shape), tensors, shape.vocabulary, True)
    return Host(graph, facts, own=own)


def _keep_markov(graph: ir.Model, head: Head) -> None:
    """Put a Markov and a confidence head, or a recurrent correction, beside the head's graph."""
    settings = head.settings
    assert isinstance(settings, DFlashSettings)
    if (domino := settings.domino) is not None:
        note = MarkovNote("domino", domino.state, False, False, domino.first, domino.shifted)
        names = {
            "gru.input.weight": "gru_input", "gru.state.weight": "gru_state",
            "correction.0.weight": "correction", "correction.1.weight": "w2",
        }  # fmt: skip
    elif (markov := settings.markov) is not None:
        sure = settings.confidence
        with_token = sure is not None and sure.with_markov
        note = MarkovNote(markov.kind, markov.rank, sure is not None, with_token)
        names = {"markov.w1": "w1", "markov.w2": "w2"}
        for there in ("markov.gate", "markov.joint", "confidence"):
            for part in ("weight", "bias"):
                names[f"{there}.{part}"] = f"{there.removeprefix('markov.')}_{part}"
    else:
        return
    note.write(graph)
    for there, here in names.items():
        if (tensor := head.tensors.get(there)) is not None:
            keep_beside(graph, MARKOV + here, tensor)
