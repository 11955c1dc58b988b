"""Rotary embeddings: positions off by one, other tables, other pairs."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import onnx_ir as ir

from faults.graphs import (
    attentions,
    bypass,
    constant,
    rewired,
    rotaries,
)
from faults.mutant import Edit, Mutant, after
from faults.passes import CANONICALIZE, KV, LOWER


def _tables(change: Callable[[Any, Any], tuple[Any, Any]], layers: Iterable[int] | None = None,
            which: Iterable[int] = (0, 1)) -> Edit:  # fmt: skip
    """The cosines and sines [P, R/2] become change(cosines, sines)."""

    def edit(model: ir.Model) -> int:
        done, made = 0, {}
        for node in rotaries(model, layers, which):
            start = 1 if node.op_type == "RotaryEmbedding" else 7
            pair = tuple(node.inputs[start : start + 2])
            if len(pair) < 2 or any(v is None or v.const_value is None for v in pair):
                continue
            if pair not in made:
                arrays = [v.const_value.numpy() for v in pair]  # type: ignore[union-attr]
                new = change(*arrays)
                made[pair] = [constant(model, a, arrays[0].dtype) for a in new]
            for place, value in enumerate(made[pair]):
                done += rewired(node, start + place, value)
        return done

    return edit


def _late(first: int) -> Callable[[Any, Any], tuple[Any, Any]]:
    """From that position on every row is the next one's."""

    def change(cos: Any, sin: Any) -> tuple[Any, Any]:
        rows = np.arange(len(cos))
        at = np.minimum(np.where(rows >= first, rows + 1, rows), len(cos) - 1)
        return cos[at], sin[at]

    return change


def _other_theta(cos: Any, sin: Any) -> tuple[Any, Any]:
    """Frequencies of a base 4 times as large."""
    width = cos.shape[1]
    angle = np.arctan2(sin[1], cos[1]).astype(np.float64)
    slower = angle * 4.0 ** (-np.arange(width) / width)
    all_ = np.arange(len(cos))[:, None] * slower
    return np.cos(all_), np.sin(all_)


def _flag(node: ir.Node) -> int:
    name = "interleaved" if node.op_type == "RotaryEmbedding" else "rotary_interleaved"
    was = node.attributes.get_int(name, 0)
    node.attributes[name] = ir.AttrInt64(name, 1 - (was or 0))
    return 1


def _interleaved(model: ir.Model) -> int:
    return sum(_flag(n) for n in rotaries(model, None, [0, 1]))


def _half_dim(model: ir.Model) -> int:
    """Half as many of a head's numbers are turned."""
    done = _tables(lambda cos, sin: (cos[:, : cos.shape[1] // 2], sin[:, : sin.shape[1] // 2]))(
        model
    )
    for node in rotaries(model, None, [0, 1]):
        table = node.inputs[1]
        assert table is not None
        assert table.shape is not None
        node.attributes["rotary_embedding_dim"] = ir.AttrInt64(
            "rotary_embedding_dim",
            2 * int(table.shape[1]),  # type: ignore[arg-type]
        )
    return done


def _unturned_keys(model: ir.Model) -> int:
    return sum(bypass(n) for n in rotaries(model, None, [1]))


def _tables_of_layer(source: int, target: int) -> Edit:
    """One layer turns by the tables of another."""

    def edit(model: ir.Model) -> int:
        done = 0
        if len(attentions(model)) <= max(source, target):
            return 0
        for which in (0, 1):
            (one,), (other,) = (rotaries(model, [i], [which]) for i in (source, target))
            for place in (1, 2):
                done += other.inputs[place] is not one.inputs[place]
                rewired(other, place, one.inputs[place])  # type: ignore[arg-type]
        return done

    return edit


ROTARY = [
    Mutant("rotary-query-late", "canonicalize: RotaryReader", "queries turn one position later",
           "llama", "masks", after(CANONICALIZE, _tables(_late(0), None, [0]))),
    Mutant("rotary-key-late-in-block-3", "canonicalize: RotaryReader",
           "keys of block 3 turn one position later",
           "llama", "masks", after(CANONICALIZE, _tables(_late(0), [3], [1]))),
    Mutant("rotary-late-over-cache", "kv-cache", "keys turn one position later once cached",
           "plain", "neutral", after(KV, _tables(_late(0), None, [1]))),
    Mutant("rotary-late-from-30", "canonicalize: RotaryReader._tables",
           "from position 30 on tables are off by one",
           "llama", "masks", after(CANONICALIZE, _tables(_late(30)))),
    Mutant("rotary-late-from-200", "canonicalize: RotaryReader._tables",
           "from position 200 of 256 on tables are off by one",
           "llama", "masks", after(CANONICALIZE, _tables(_late(200)))),
    Mutant("rotary-late-from-30-lowered", "lower-ort: group_query_attention",
           "from position 30 on tables are off by one",
           "plain", "tables", after(LOWER, _tables(_late(30)))),
    Mutant("rotary-interleaved", "canonicalize: _pairing", "neighbours are paired, not halves",
           "llama", "masks", after(CANONICALIZE, _interleaved)),
    Mutant("rotary-interleaved-lowered", "lower-ort", "neighbours are paired, not halves",
           "plain", "neutral", after(LOWER, _interleaved)),
    Mutant("rotary-dim-halved", "canonicalize: _pairing", "half as much of a head is turned",
           "llama", "masks", after(CANONICALIZE, _half_dim)),
    Mutant("rotary-sin-negated", "canonicalize: RotaryReader._tables", "heads turn the other way",
           "llama", "masks", after(CANONICALIZE, _tables(lambda c, s: (c, -s), None, [0]))),
    Mutant("rotary-cos-and-sin-swapped", "canonicalize: RotaryReader._tables",
           "queries take sines for cosines",
           "llama", "masks", after(CANONICALIZE, _tables(lambda c, s: (s, c), None, [0]))),
    Mutant("rotary-other-theta", "canonicalize: RotaryReader._tables", "a base 4 times as large",
           "llama", "masks", after(CANONICALIZE, _tables(_other_theta))),
    Mutant("rotary-theta-of-another-layer", "canonicalize: RotaryReader.tables",
           "a global layer turns by the tables of a local one",
           "gemma3", "masks", after(CANONICALIZE, _tables_of_layer(0, 1))),
    Mutant("rotary-keys-unturned", "canonicalize: RotaryReader.settle", "keys are not turned",
           "llama", "masks", after(CANONICALIZE, _unturned_keys)),
]  # fmt: skip
