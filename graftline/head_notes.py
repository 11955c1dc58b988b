"""What the graph of a draft head says of itself, for passes to read. It travels in the graph."""

from __future__ import annotations

import base64
import json
from dataclasses import dataclass
from typing import ClassVar, Self

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from graftline.typed_json import read as typed

TAPS = "graftline.taps"
"""Metadata: what the head reads of its target."""
TAPPED = "taps."
"""Prefix of the initializers that work on what it reads: taps.norm.{i}, taps.norm, taps.fc and
taps.fc.bias; the head's own graph does not read them."""
NORM = -1
"""Among the layers that a head reads: the output of its target's final norm."""
MARKOVS, MARKOV = "graftline.markov", "markov."
"""Metadata: of what kind a head's Markov head is; and the prefix of its initializers, which the
head's own graph does not read: w1 [V, r], w2 [Vd, r], {gate,joint,confidence}_{weight,bias}; of the
kind `domino` w2 [V, width], gru_input [3S, H], gru_state [3S, S] and correction [width, H + S]."""
ADAPTERS = "graftline.adapter"
"""Metadata: the sizes of an adapter: an exit's, or a layer in front of draft heads."""
ACCELERATED = "graftline.accelerators"
"""Metadata: of how many blocks accelerators are, and the epsilon of their norms."""
LOW_RANK = "graftline.low_rank"
"""Metadata: the blocks that low-rank corrections stand in for."""
TRANSFERS = "graftline.transfers"
"""Metadata: where states of the tokens to come enter a host."""
ROUTED = "graftline.routers"
"""Metadata: the blocks that have a router."""
IDS = "graftline.draft_ids"
"""Metadata: the target's id of each token that the head scores, and how many the target has."""
NEXT_DOWN = "next.down"
"""The initializer [H, I] of a head whose last MLP makes the next feature by a matrix of its own;
the head's own graph does not read it."""
PLACEHOLDERS = "placeholders"
"""The initializer [K, H] of a head that is embeddings and no more: row i, in the place of a token's
behind a text, foretells the token i + 2 places behind it."""
NEVER = -1e9
"""The logit of a token that a head does not score."""
Ids = npt.NDArray[np.int64]


class Note:
    """What is noted in a graph: a dataclass, as JSON under its `key`."""

    key: ClassVar[str]

    def write(self, model: ir.Model) -> None:
        """Note it in the head's graph, or in that of a host that has the head's parts."""
        model.metadata_props[self.key] = json.dumps(vars(self))

    @classmethod
    def read(cls, model: ir.Model) -> Self | None:
        """What was noted; None where nothing was."""
        text = model.metadata_props.get(cls.key)
        return None if text is None else typed(cls, json.loads(text), cls.key)


@dataclass(frozen=True)
class TapReading(Note):
    """The blocks whose outputs a head reads (NORM: the final norm's), the features' width, and the
    epsilon of its norms."""

    key: ClassVar[str] = TAPS

    layers: tuple[int, ...]
    width: int
    epsilon: float


@dataclass(frozen=True)
class MarkovNote(Note):
    """A Markov head of a kind (vanilla, gated, rnn) and a rank; whether the head has a confidence,
    and whether that reads the row of the token before it too. Or `domino`, a recurrent correction
    with a state of `rank` numbers, which adds to rows from `first` on. `anchor`: the first row of a
    block drafts too; else it is the last token's own, and is scored by nothing."""

    key: ClassVar[str] = MARKOVS

    kind: str
    rank: int
    confidence: bool
    with_token: bool
    first: int = 0
    anchor: bool = True


@dataclass(frozen=True)
class AdapterNote(Note):
    """The sizes of an adapter: query heads, KV heads, numbers of a head, and the epsilon of its
    norms. `prefix`: it has an MLP and stands in front of draft heads (Hydra++), behind no exit."""

    key: ClassVar[str] = ADAPTERS

    heads: int
    kv_heads: int
    head_size: int
    epsilon: float
    prefix: bool = False


@dataclass(frozen=True)
class AcceleratorNote(Note):
    """Accelerators of a host's first `blocks` blocks, and the epsilon of their norms."""

    key: ClassVar[str] = ACCELERATED

    blocks: int
    epsilon: float


@dataclass(frozen=True)
class LowRankNote(Note):
    """The 0-based blocks, in order, that are passed by with a low-rank correction."""

    key: ClassVar[str] = LOW_RANK

    layers: tuple[int, ...]


@dataclass(frozen=True)
class TransferNote(Note):
    """`count` matrices that make states of the tokens to come, which enter behind the host's first
    `blocks` blocks."""

    key: ClassVar[str] = TRANSFERS

    blocks: int
    count: int


@dataclass(frozen=True)
class RouterNote(Note):
    """The 0-based blocks, in order, that have a router."""

    key: ClassVar[str] = ROUTED

    layers: tuple[int, ...]


def write_draft_ids(model: ir.Model, ids: Ids, vocabulary: int) -> None:
    """Note in a head's graph what its tokens [Vd] are among the target's `vocabulary`."""
    text = base64.b64encode(ids.astype("<i8").tobytes()).decode("ascii")
    model.metadata_props[IDS] = f"{vocabulary}:{text}"


def read_draft_ids(model: ir.Model) -> tuple[Ids, int] | None:
    """What `write_draft_ids` has noted; None where nothing is."""
    size, found, text = model.metadata_props.get(IDS, "").partition(":")
    return (np.frombuffer(base64.b64decode(text), "<i8"), int(size)) if found else None
