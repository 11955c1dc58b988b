"""Every family end to end: checkpoint in, engine out, the same logits as transformers.

Heads of 16 take ONNX Runtime's GroupQueryAttention, heads of 12 keep Attention, whatever the
family: these are tried once for each kind of attention. The 40 positions are longer than the
sliding windows, and are fed as a prompt and two later steps.
"""

from __future__ import annotations

from collections import Counter
from itertools import product
from pathlib import Path

import numpy as np
import pytest

import graftline
from graftline.bundle.store import load_graph
from graftline.models.tiny import FAMILIES, FURTHER, tiny
from graftline.runtimes.sessions import open_session
from graftline.tree import Tree
from tests.exports import wide
from tests.rounding import sum_tolerance

UNFUSED = (
    "llama", "mistral", "qwen3", "gemma2", "gemma3_text", "gpt2", "gpt_neox", "falcon", "bloom",
    "cohere",
)  # fmt: skip
"""Between them every kind of canonical Attention and RotaryEmbedding of FAMILIES, by attributes,
mask and the operators around it."""
BLOCK = 2 * 64 + 16 + 2 * 40 + 64 + 2 * 64 + 80
"""Additions on the way through a block at most: its projections, norms and 40 keys."""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "heads"), [*product(UNFUSED, (12,)), *product([*FAMILIES, *FURTHER], (16,))]
)
def test_engine_equals_transformers(family: str, heads: int, tmp_path: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    tiny(family, tmp_path / "model", **(wide(family) if heads == 16 else {}))
    bundle = graftline.optimize(tmp_path / "model", tmp_path / "out")
    used = Counter(n.op_type for n in load_graph(bundle.graph("ort-cpu")).graph)
    assert (
        used["GroupQueryAttention" if heads == 16 else "Attention"] == bundle.manifest.facts.layers
    )
    session = open_session(bundle, capacity=100)
    ids = np.random.default_rng(0).integers(3, session.facts.vocabulary, (1, 40), dtype=np.int64)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "model", dtype=torch.float32)

    def logits(tokens: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            return model(torch.tensor(tokens)).logits[0].numpy()

    expected = logits(ids)
    limit = sum_tolerance(bundle.manifest.facts.layers * BLOCK + 2 * 64, np.abs(expected).max())
    parts = [session.prefill([ids[0, :15]]).logits[0].copy()]
    for start, end in ((15, 30), (30, 40)):
        parts.append(session.score(ids[:, start:end]).logits[0].copy())
        session.commit([range(end - start)])
    worst = float(np.abs(np.concatenate(parts) - expected[14:]).max())
    print(f"{family}, heads of {heads}: max difference to transformers {worst:.2g} of {limit:.2g}")
    assert worst <= limit

    tree = Tree(ids[0, :6], np.array([-1, 0, 0, 1, 2, 2]))
    session.truncate([25])
    scored = session.score(tree.tokens[None], tree.depth[None], tree.mask[None]).logits[0].copy()
    for leaf in (3, 4, 5):
        path = list(tree.path_to(leaf))
        alone = logits(np.concatenate([ids[0, :25], tree.tokens[path]])[None])[25:]
        assert np.abs(scored[path] - alone).max() <= limit
