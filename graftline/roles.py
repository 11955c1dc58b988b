"""Inputs and outputs by what they mean: the names that feeds and answers of a graph have."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from graftline.owners import TARGET
from graftline.ports import Port

DRAFT_LOGITS = "draft.logits"
"""Role of what a draft block in a step gives: [B, depth], the logit of each token it drafts."""
HEADS_LOGITS, HEADS_IDS, HEADS_TOPK = "heads.logits", "heads.topk_ids", "heads.topk_logits"
"""Roles of what draft heads give: [B, N, heads, V], and [B, N, heads, k], best first."""
LAST = "last"
"""Role of the token behind a row [B, N], which heads with bigrams read beside its state."""
LATENTS, LENGTHS, CONDITION, DECODED = "latents", "lengths", "condition", "decoded"
"""Roles of a decoder of latents: what it decodes, how many of them each row has, what else it is
told, and what it makes."""
SAMPLE, NOISE, SEED = "sample", "noise", "seed"
"""Other roles of hosts that run once: a noisy sample, noise of a standard normal distribution, and
the seed [1] of noise that the graph draws."""
RESIDUAL, STRENGTH = "residual", "strength"
"""Roles beside latents that a denoiser is called on: what was learned to be added to them, and the
standard deviation [B] of the noise that they get."""
CONTEXT = "context"
"""Role of what a decoder of latents still reads of those before: an input, of zeros at the
beginning, and as an output what the next chunk is given."""
PAST, BEGUN = "past", "begun"
"""Roles of a denoiser that draws a chunk behind the one before: that chunk's sample, of zeros at
the beginning, and whether a row has one [B]."""
SIGNAL, SCORES, COUNTS = "signal", "scores", "counts"
"""Roles of a recogniser: what it hears or sees, the scores of every position's tokens, and how many
positions of each row are its text."""
CLASSES = "classes"
"""Role of an output of a decoder of queries: the class of every place, in place of their scores."""
TRANSITIONS, STATES, VERTICES = "transitions", "states", "vertices"
"""Other roles of a recogniser whose positions are vertices of a graph: the logarithm of the chance
of going on from each to each, their hidden states, and how many of them each row has."""
FRAMES = "frames"
"""Role of an output [B] of a decoder that chooses how long its own is: how many frames each row
has."""
CANVAS, CHOSEN, KEPT = "canvas", "chosen", "kept"
"""Roles of a masked generator: its tokens, the positions that a step computes, and what the other
positions are attended to by, of an earlier step."""
FRESH, DENOISED = "fresh_noise", "denoised"
"""Roles of a sampling loop in a graph: noise that a step adds, and the sample without noise."""
MAIN = (LATENTS, SIGNAL, CANVAS, SAMPLE, NOISE)
"""Roles of the input that a host which runs once makes its output of, the first that there is."""


@dataclass(frozen=True)
class Roles:
    """The names of an owner's inputs and outputs by role. Those that hold slots of positions are
    many of one role, and are not among them: see `slot_ports`."""

    inputs: Mapping[str, str]
    outputs: Mapping[str, str]

    @classmethod
    def of(cls, ports: Iterable[Port], owner: str = TARGET) -> Roles:
        """Of a graph's ports."""
        own = [p for p in ports if p.owner == owner and not p.state]
        sides = ({p.role: p.name for p in own if p.direction == side} for side in ("in", "out"))
        return cls(*sides)

    def feed(self, **values: npt.NDArray[Any]) -> dict[str, npt.NDArray[Any]]:
        """Values by the names of the inputs of these roles; without those that the graph lacks."""
        return {self.inputs[role]: v for role, v in values.items() if role in self.inputs}


def chain_feed(
    ports: Iterable[Port], vocabulary: int, batch: int = 2, rows: int = 24, seed: int = 0
) -> dict[str, npt.NDArray[Any]]:
    """Seeded tokens and plain positions for a canonical decoder, [batch, rows] each."""
    tokens = np.random.default_rng(seed).integers(0, vocabulary, (batch, rows), dtype=np.int64)
    positions = np.tile(np.arange(rows, dtype=np.int64), (batch, 1))
    return Roles.of(ports).feed(tokens=tokens, positions=positions)
