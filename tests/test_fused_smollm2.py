"""The fused step on the real model: one engine call per step, and the host's very tokens."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import graftline
from graftline.runtimes.engine import Engine

PROMPTS = (
    "Write a Python function that adds two numbers and one that multiplies two numbers.",
    "Repeat after me: one two three four five six seven eight nine ten, one two three four five.",
)


@pytest.fixture(scope="module")
def engine(
    smollm2: Path, no_measuring: None, tmp_path_factory: pytest.TempPathFactory
) -> Engine:
    out = tmp_path_factory.mktemp("smollm2") / "fused.graft"
    made = graftline.optimize(smollm2, out, recipe="token-recycling", step="fused")
    laws = {w.law: w.text for w in made.manifest.laws if w.graft == "fused"}
    assert laws["fused"].startswith("24 steps")
    loaded = graftline.load(out, step="fused", capacity=512)
    loaded._costs = None  # the whole tree in every step, however busy the machine is
    return loaded


@pytest.mark.parametrize("options", [{}, {"temperature": 0.8, "min_p": 0.05, "seed": 5}])
def test_fused_steps_give_plains_tokens(engine: Engine, options: dict[str, Any]) -> None:
    asked = {"max_new_tokens": 40, "ignore_eos": True, **options}
    plain: Any = engine.generate(list(PROMPTS), recipe="plain", step="host", **asked)
    fused: Any = engine.generate(list(PROMPTS), **asked)
    assert [r.tokens for r in fused] == [r.tokens for r in plain]
    assert [r.text for r in fused] == [r.text for r in plain]
    assert all(r.stats.lossless and r.stats.steps < 38 for r in fused)
