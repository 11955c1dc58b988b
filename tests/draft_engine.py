"""The engine of a draft head alone, without its target: lowered, and called over its cache."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from graftline.build.compiled import Compiler
from graftline.facts import DecoderFacts, DraftBlockFacts, read_facts
from graftline.kinds import draft_block
from graftline.models.heads import Head
from graftline.models.heads.eagle_host import Shared, eagle_host
from graftline.models.host import silent
from graftline.ports import FEATURES, Port, read_ports, state_port
from graftline.recipe import recipe
from graftline.targets import CPU, ending
from tests.models.heads.reference_layers import Sizes

ROWS = draft_block.ROWS
"""Rows of a text, which the engine reads in several calls."""


def seeded_tables(sizes: Sizes) -> tuple[Any, Any]:
    """The host's embedding and lm_head [V, H]."""
    random = np.random.default_rng(3)
    tables = random.standard_normal((2, sizes.vocabulary, sizes.hidden)).astype(np.float32)
    return tables[0], tables[1]


def seeded_text(sizes: Sizes) -> tuple[Any, Any]:
    """Tokens [1, N] and features [1, N, H]."""
    random = np.random.default_rng(4)
    tokens = random.integers(0, sizes.vocabulary, (1, ROWS), dtype=np.int64)
    return tokens, random.standard_normal((1, ROWS, sizes.hidden)).astype(np.float32)


def answered(
    head: Head, by: str, sizes: Sizes, folder: Path, config: Any = None
) -> tuple[Any, Any]:
    """Logits [N, V] and states [N, H] of the head's engine by the recipe `by`, on the seeded text,
    with the seeded tables; `config`: its host's."""
    file, ports, own = lowered(head, by, sizes, folder, config)
    tokens, features = seeded_text(sizes)
    seen = np.tri(ROWS, dtype=np.bool_)[None, None]
    feed = {"tokens": tokens, FEATURES: features, "mask": seen}
    state = state_port(ports, own.normed_state).name
    logits, states = draft_block._answers(file, ports, feed, state)
    return logits[0], states[0]


def lowered(
    head: Head, by: str, sizes: Sizes, folder: Path, config: Any
) -> tuple[Path, tuple[Port, ...], DraftBlockFacts]:
    """The head's graph as the recipe `by` lowers it for ONNX Runtime, with the seeded tables."""
    facts = DecoderFacts(
        vocabulary=sizes.vocabulary, hidden=sizes.hidden, layers=sizes.layers, heads=sizes.heads,
        kv_heads=sizes.kv_heads, head_size=sizes.head_size, positions=512,
    )  # fmt: skip
    head.check(facts)
    tables = (ir.tensor(table, name="table") for table in seeded_tables(sizes))
    host = eagle_host(head, facts, Shared(*tables), silent, config)
    text = f"{recipe(by).head} | {ending(CPU, 'fp32', None)}"
    made = Compiler(host.model, silent, host.model).form(text)
    assert made is not None
    own = read_facts(made.lowered)
    assert isinstance(own, DraftBlockFacts)
    return _saved(made.lowered, folder), read_ports(made.lowered), own


def _saved(model: ir.Model, folder: Path) -> Path:
    """The graph with its weights in it."""
    import onnx

    proto = ir.to_proto(model)
    for tensor in proto.graph.initializer:
        value = model.graph.initializers[tensor.name].const_value
        assert value is not None
        tensor.CopyFrom(ir.to_proto(ir.Tensor(value.numpy(), name=tensor.name)))
    onnx.save(proto, folder / "head.onnx")
    return folder / "head.onnx"
