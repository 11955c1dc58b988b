"""What the graph of a draft head says of itself, for passes to read. It travels in the graph."""

from __future__ import annotations

import base64
import json
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

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


@dataclass(frozen=True)
class TapReading:
    """The blocks whose outputs a head reads (NORM: the final norm's), the features' width, and the
    epsilon of its norms."""

    layers: tuple[int, ...]
    width: int
    epsilon: float

    def write(self, model: ir.Model) -> None:
        """Note it in the head's graph."""
        model.metadata_props[TAPS] = json.dumps(vars(self))

    @classmethod
    def read(cls, model: ir.Model) -> TapReading | None:
        """What was noted; None where nothing was."""
        text = model.metadata_props.get(TAPS)
        if text is None:
            return None
        row = json.loads(text)
        return cls(tuple(row["layers"]), row["width"], row["epsilon"])


@dataclass(frozen=True)
class MarkovNote:
    """A Markov head of a kind (vanilla, gated, rnn) and a rank; whether the head has a confidence,
    and whether that reads the row of the token before it too. Or `domino`, a recurrent correction
    with a state of `rank` numbers, which adds to rows from `first` on. `anchor`: the first row of a
    block drafts too; else it is the last token's own, and is scored by nothing."""

    kind: str
    rank: int
    confidence: bool
    with_token: bool
    first: int = 0
    anchor: bool = True

    def write(self, model: ir.Model) -> None:
        """Note it in the head's graph."""
        model.metadata_props[MARKOVS] = json.dumps(vars(self))

    @classmethod
    def read(cls, model: ir.Model) -> MarkovNote | None:
        """What was noted; None where nothing was."""
        text = model.metadata_props.get(MARKOVS)
        return None if text is None else cls(**json.loads(text))


@dataclass(frozen=True)
class AdapterNote:
    """The sizes of an adapter: query heads, KV heads, numbers of a head, and the epsilon of its
    norms. `prefix`: it has an MLP and stands in front of draft heads (Hydra++), behind no exit."""

    heads: int
    kv_heads: int
    head_size: int
    epsilon: float
    prefix: bool = False

    def write(self, model: ir.Model) -> None:
        """Note it in the adapter's graph."""
        model.metadata_props[ADAPTERS] = json.dumps(vars(self))

    @classmethod
    def read(cls, model: ir.Model) -> AdapterNote | None:
        """What was noted; None where nothing was."""
        text = model.metadata_props.get(ADAPTERS)
        return None if text is None else cls(**json.loads(text))


@dataclass(frozen=True)
class AcceleratorNote:
    """Accelerators of a host's first `blocks` blocks, and the epsilon of their norms."""

    blocks: int
    epsilon: float

    def write(self, model: ir.Model) -> None:
        """Note it in the accelerators' graph."""
        model.metadata_props[ACCELERATED] = json.dumps(vars(self))

    @classmethod
    def read(cls, model: ir.Model) -> AcceleratorNote | None:
        """What was noted; None where nothing was."""
        text = model.metadata_props.get(ACCELERATED)
        return None if text is None else cls(**json.loads(text))


@dataclass(frozen=True)
class LowRankNote:
    """The 0-based blocks, in order, that are passed by with a low-rank correction."""

    layers: tuple[int, ...]

    def write(self, model: ir.Model) -> None:
        """Note it in the corrections' graph."""
        model.metadata_props[LOW_RANK] = json.dumps(vars(self))

    @classmethod
    def read(cls, model: ir.Model) -> LowRankNote | None:
        """What was noted; None where nothing was."""
        text = model.metadata_props.get(LOW_RANK)
        return None if text is None else cls(tuple(json.loads(text)["layers"]))


@dataclass(frozen=True)
class TransferNote:
    """`count` matrices that make states of the tokens to come, which enter behind the host's first
    `blocks` blocks."""

    blocks: int
    count: int

    def write(self, model: ir.Model) -> None:
        """Note it in the matrices' graph, or in that of a host that has them."""
        model.metadata_props[TRANSFERS] = json.dumps(vars(self))

    @classmethod
    def read(cls, model: ir.Model) -> TransferNote | None:
        """What was noted; None where nothing was."""
        text = model.metadata_props.get(TRANSFERS)
        return None if text is None else cls(**json.loads(text))


@dataclass(frozen=True)
class RouterNote:
    """The 0-based blocks, in order, that have a router."""

    layers: tuple[int, ...]

    def write(self, model: ir.Model) -> None:
        """Note it in the routers' graph."""
        model.metadata_props[ROUTED] = json.dumps(vars(self))

    @classmethod
    def read(cls, model: ir.Model) -> RouterNote | None:
        """What was noted; None where nothing was."""
        text = model.metadata_props.get(ROUTED)
        return None if text is None else cls(tuple(json.loads(text)["layers"]))


def write_draft_ids(model: ir.Model, ids: Ids, vocabulary: int) -> None:
    """Note in a head's graph what its tokens [Vd] are among the target's `vocabulary`."""
    text = base64.b64encode(ids.astype("<i8").tobytes()).decode("ascii")
    model.metadata_props[IDS] = f"{vocabulary}:{text}"


def read_draft_ids(model: ir.Model) -> tuple[Ids, int] | None:
    """What `write_draft_ids` has noted; None where nothing is."""
    size, found, text = model.metadata_props.get(IDS, "").partition(":")
    return (np.frombuffer(base64.b64decode(text), "<i8"), int(size)) if found else None
