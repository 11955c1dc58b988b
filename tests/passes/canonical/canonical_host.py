"""A raw one-block decoder made canonical, and how the two are compared."""

from __future__ import annotations

import json
from collections import Counter

import numpy as np
import onnx_ir as ir

from graftline.evaluate import run
from graftline.passes.canonical.canonicalize import Canonicalize
from graftline.passes.grafts.masks import MASK_KEY
from tests.passes.canonical.raw_decoder import (
    LONGEST,
    SHAPE,
    feed,
)  # fmt: skip
from tests.rounding import assert_same_sums, decoder_terms

CANONICAL = Counter(
    Gather=1, RMSNormalization=1, MatMul=5, Reshape=4, Transpose=5, RotaryEmbedding=2, Attention=1,
    Add=1,
)  # fmt: skip


def canonical(model: ir.Model) -> ir.Model:
    graft = Canonicalize(positions=LONGEST)
    graft.requires(model)
    graft.apply(model)
    return model


def ops(model: ir.Model) -> Counter[str]:
    return Counter(node.op_type for node in model.graph)


def mask_of(model: ir.Model) -> dict[str, object]:
    (node,) = [n for n in model.graph if n.op_type == "Attention"]
    return json.loads(node.metadata_props[MASK_KEY])


def same_logits(
    raw: ir.Model, changed: ir.Model, given: dict[str, np.ndarray], full: bool = True
) -> None:
    before = next(iter(run(raw, given).values()))
    canon = {k: given.get(k, feed()[k]) for k in ("tokens", "positions")}
    after = run(changed, canon)["logits"]
    assert_same_sums(after if full else after[:, -1:], before, decoder_terms(SHAPE, LONGEST))
