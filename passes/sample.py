"""A text that a host writes itself, for passes that look at its activations: it needs no data and
no tokenizer, and holds what the host knows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import onnx.reference
import onnx_ir as ir

from graftline.contrib_ops import CONTRIB_OPS
from graftline.evaluate import Feed, oracle_limit, without_weights
from graftline.passes.graft import Graft
from graftline.passes.kv_cache import KvCache, carried_caches, empty_caches
from graftline.ports import read_facts

SEQUENCES, LENGTH, PROBES = 16, 64, 4
"""Sequences, tokens of each, and how many of the sequences are enough to compare two graphs."""
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
    behind a first token of its own; always the same."""
    facts, random = read_facts(model), np.random.default_rng(0)
    length = min(length, facts.positions or length)
    host = model.clone()
    KvCache().requires(host)
    KvCache().apply(host)
    bare, weights = without_weights(host)
    session = onnx.reference.ReferenceEvaluator(ir.to_proto(bare), new_ops=list(CONTRIB_OPS))
    names = cast(list[str], session.output_names)
    tokens = random.integers(0, facts.vocabulary, (sequences, 1), dtype=np.int64)
    caches = {k: np.zeros_like(v) for k, v in empty_caches(host, sequences, length).items()}
    for at in range(length - 1):
        place = np.full((sequences, 1), at, np.int64)
        feed = {"tokens": tokens[:, -1:], "positions": place, "write_index": place[:, 0], **caches}
        values: Any = session.run(None, {**feed, **weights})
        outputs = dict(zip(names, map(np.asarray, values), strict=True))
        caches = carried_caches(host, outputs)
        logits = outputs["logits"][:, -1].astype(np.float32)
        drawn = (logits + random.gumbel(size=logits.shape)).argmax(axis=-1)
        tokens = np.concatenate([tokens, drawn[:, None].astype(np.int64)], axis=1)
    return tokens
