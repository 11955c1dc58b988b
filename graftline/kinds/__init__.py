"""The kinds of host. What is true of one kind only lies in its own file or folder here."""

from __future__ import annotations

from collections.abc import Mapping

from graftline.facts import Facts
from graftline.kinds.canvas import Canvas
from graftline.kinds.dag_recogniser import DagRecogniser
from graftline.kinds.decoder.kind import Decoder
from graftline.kinds.denoiser import Denoiser
from graftline.kinds.draft_block import DraftBlock
from graftline.kinds.draft_head import DraftHead
from graftline.kinds.kind import Kind
from graftline.kinds.latent_decoder import LatentDecoder
from graftline.kinds.query_decoder import QueryDecoder
from graftline.kinds.recogniser import Recogniser

KINDS: Mapping[str, Kind] = {
    kind.name: kind
    for kind in (
        Decoder(), Denoiser(), LatentDecoder(), Recogniser(), DagRecogniser(), Canvas(),
        QueryDecoder(), DraftHead(), DraftBlock(),
    )
}  # fmt: skip


def kind_of(facts: Facts) -> Kind:
    """The kind of a host."""
    return KINDS[facts.kind]
