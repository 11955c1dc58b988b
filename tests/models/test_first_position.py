"""A model that leaves rows of its position table for padding counts from behind them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from graftline.facts import decoder_facts
from graftline.models import open_checkpoint
from graftline.passes.canonical.canonicalize import Canonicalize
from graftline.ports import read_assumptions, told

from .harness import logits

torch = pytest.importorskip("torch")


def test_positions_begin_behind_the_rows_of_padding(tmp_path: Path) -> None:
    import transformers

    config = transformers.AutoConfig.for_model(
        "roberta", vocab_size=96, hidden_size=32, num_hidden_layers=2, num_attention_heads=4,
        intermediate_size=48, max_position_embeddings=40, is_decoder=True, pad_token_id=1,
    )  # fmt: skip
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    model.save_pretrained(tmp_path)
    graph = open_checkpoint(tmp_path).host().model
    Canonicalize().apply(graph)
    ids = np.random.default_rng(0).integers(3, 96, (1, 12))
    with torch.no_grad():
        expected = model(torch.from_numpy(ids)).logits.numpy()
    got = logits(graph, {"tokens": ids, "positions": np.arange(12)[None]})
    np.testing.assert_allclose(got, expected, atol=1e-5)
    assert decoder_facts(graph).positions == 38
    line = "input 'tokens' (token ids) is taken as ids of which none is the padding id; "
    assert told(read_assumptions(graph))[0].startswith(line)
