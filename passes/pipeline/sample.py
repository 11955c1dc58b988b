"""A text that a host writes itself, for passes that look at its activations: it needs no data and
no tokenizer, and holds what the host knows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from graftline.evaluate import Feed, oracle_limit
from graftline.facts import decoder_facts
from graftline.passes.graph.activations import activations
from graftline.passes.pipeline.graft import Graft
from graftline.ports import by_role, read_ports

SEQUENCES, LENGTH, PROBES = 16, 64, 4
"""Sequences, tokens of each, and how many of the sequences are enough to compare two graphs."""
ROUNDS = 4
"""Products with SmolLM2's matrices (README as the other text) are off by 0.0073, 0.0066 and 0.0064
after 0, 2 and 4 rounds, by 0.0057 for a text written token by token, by 0.0109 rounded to nearest.
"""
LARGEST = 4 << 30
"""Bytes of weights up to which a host writes and is looked at: minutes, on two cores."""
SAMPLE = "graftline.sample"
"""In a model's `meta`, which is no part of its file: the Sample that passes may look at."""
Watch = Callable[[str], None]


@dataclass(frozen=True)
class Sample:
    """Feeds of a graph as it is now: all sequences, and a few of them; or `missing`, why there are
    none. `say` is told what takes time."""

    feed: Feed
    probe: Feed
    say: Watch
    missing: str = ""

    def after(self, graft: Graft, model: ir.Model) -> Sample:
        """The same for the graph that a graft made of it."""
        if self.missing:
            return self
        feeds = graft.neutral(self.feed, model), graft.neutral(self.probe, model)
        return Sample(*feeds, self.say)


def sample_of(model: ir.Model, say: Watch) -> Sample:
    """What a canonical host writes; none where its weights are too large to run here."""
    size = sum(v.const_value.nbytes for v in model.graph.initializers.values() if v.const_value)
    if size > (most := min(LARGEST, oracle_limit())):
        why = f"the weights are {size / 1e9:.1f} GB, of which {most / 1e9:.1f} GB can be run here"
        return Sample({}, {}, say, why)
    say(f"calibration: the host writes {SEQUENCES} texts of {LENGTH} tokens")
    tokens = written(model)
    positions = np.tile(np.arange(tokens.shape[1], dtype=np.int64), (len(tokens), 1))
    few = slice(PROBES)
    probe: Feed = {"tokens": tokens[few], "positions": positions[few]}
    return Sample({"tokens": tokens, "positions": positions}, probe, say)


def written(model: ir.Model, sequences: int = SEQUENCES, length: int = LENGTH) -> npt.NDArray[Any]:
    """Tokens [sequences, length] that a canonical host samples at temperature 1, each sequence
    behind a first token of its own; always the same.

    All places are drawn at once from what stands before them, ROUNDS times over (Jacobi decoding;
    Song et al. 2021), beginning with random tokens and keeping each place's random numbers: a few
    large products, where one token after another takes many small ones. The first ROUNDS tokens
    are exact samples; those behind them fit what stood there a round before.
    """
    facts, random = decoder_facts(model), np.random.default_rng(0)
    length = min(length, facts.positions or length)
    tokens = random.integers(0, facts.vocabulary, (sequences, length), dtype=np.int64)
    positions = np.tile(np.arange(length, dtype=np.int64), (sequences, 1))
    name = by_role(read_ports(model), "logits", "out")[0].name
    for _ in range(ROUNDS):
        feed = {"tokens": tokens, "positions": positions}
        (_, logits), *_ = activations(model, feed, [name])
        noise = np.random.default_rng(1)
        for row in range(sequences):
            scores = logits[row, :-1].astype(np.float32)
            tokens[row, 1:] = (scores + noise.gumbel(size=scores.shape)).argmax(axis=-1)
    return tokens
