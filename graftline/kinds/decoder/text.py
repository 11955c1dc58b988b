"""A text that a decoder writes itself, for passes that look at its activations: it needs no data
and no tokenizer, and holds what the host knows."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from graftline.evaluate import oracle_limit
from graftline.facts import decoder_facts
from graftline.passes import GRAFTS, Pipeline
from graftline.passes.graph.ports import roles_of
from graftline.passes.pipeline.sample import Sample
from graftline.ports import read_ports

SEQUENCES, LENGTH, PROBES = 16, 64, 4
"""Sequences, tokens of each, and how many of the sequences are enough to compare two graphs. With
32 of 128 tokens SmolLM2's predictions on other texts are nearer by 6 %, for four times the time."""
LARGEST = 4 << 30
"""Bytes of weights up to which a host writes and is looked at: minutes, on two cores."""
ENGINE = "kv-cache | lower-ort"
"""What a canonical host is run with."""
Watch = Callable[[str], None]


def sample_of(model: ir.Model, say: Watch) -> Sample:
    """What a canonical host writes; none where its weights are too large to run here."""
    size = sum(v.const_value.nbytes for v in model.graph.initializers.values() if v.const_value)
    if size > (most := min(LARGEST, oracle_limit())):
        why = f"the weights are {size / 1e9:.1f} GB, of which {most / 1e9:.1f} GB can be run here"
        return Sample({}, {}, say, why)
    say(f"calibration: the host writes {SEQUENCES} texts of {LENGTH} tokens")
    tokens = written(model)
    positions = np.tile(np.arange(tokens.shape[1], dtype=np.int64), (len(tokens), 1))
    feed = roles_of(model).feed(tokens=tokens, positions=positions)
    return Sample(feed, {name: array[:PROBES] for name, array in feed.items()}, say)


def written(
    model: ir.Model, sequences: int = SEQUENCES, length: int = LENGTH
) -> npt.NDArray[np.int64]:
    """Tokens [sequences, length] that a canonical host samples at temperature 1, each sequence
    behind a first token of its own; always the same."""
    from graftline.runtimes.ort.held import HeldSession

    lowered = model.clone()
    Pipeline.parse(ENGINE, GRAFTS).run(lowered)
    facts, random = decoder_facts(model), np.random.default_rng(0)
    length = min(length, facts.positions or length)
    session = HeldSession(lowered, decoder_facts(lowered), read_ports(lowered), capacity=length)
    tokens = np.zeros((sequences, length), np.int64)
    tokens[:, 0] = random.integers(0, facts.vocabulary, sequences)
    session.reset(sequences)
    for place in range(1, length):
        scores = session.score(tokens[:, place - 1 : place]).logits[:, -1].astype(np.float32)
        session.commit([range(1)] * sequences)
        tokens[:, place] = (scores + random.gumbel(size=scores.shape)).argmax(axis=-1)
    return tokens
