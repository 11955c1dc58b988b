"""Every family: the raw graph computes what transformers computes."""

from __future__ import annotations

from pathlib import Path

import pytest
from harness import assert_same_logits, feed, logits, reference

from graftline.models import external_files, open_checkpoint
from graftline.models.tiny import FAMILIES, tiny
from tests.exports import wide

QUICK = {"llama", "gpt2", "gemma2"}


@pytest.mark.parametrize(
    "family", [f if f in QUICK else pytest.param(f, marks=pytest.mark.slow) for f in FAMILIES]
)
def test_raw_graph_equals_transformers(family: str, tmp_path: Path) -> None:
    folder = tiny(family, tmp_path / family, **wide(family))
    said: list[str] = []
    host = open_checkpoint(folder).host(watch=said.append)
    assert not [line for line in said if "because" in line], said  # stamped, never fallen back
    values = feed()
    want, got = reference(folder, values), logits(host.model, values)
    assert_same_logits(got, want, host.facts.layers)
    assert host.facts.vocabulary == want.shape[-1]
    assert external_files(host.model), "weights were copied into the graph"
    assert {v.name for v in host.model.graph.inputs} <= set(values)
    assert [v.name for v in host.model.graph.outputs] == ["logits"]


def test_facts_follow_the_config(llama: Path) -> None:
    facts = open_checkpoint(llama).host().facts
    assert (facts.vocabulary, facts.hidden, facts.layers) == (96, 48, 3)
    assert (facts.heads, facts.kv_heads, facts.head_size, facts.positions) == (4, 2, 12, 128)
    assert facts.parameters == 2 * 96 * 48 + 3 * (2 * 48 * 48 + 2 * 48 * 24 + 3 * 48 * 80 + 96) + 48
