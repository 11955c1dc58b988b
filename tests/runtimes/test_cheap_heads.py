"""A head whose calls cost little pays though it is seldom right: it must not be left unused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.bench.controllers import speed

HEAD = "draft-model@0.33-0.31-0.43/0.076/1"
"""The first trained head: right so often by depth, for 1.29 ms beside a step of 17.0."""


def answers(count: int) -> list[dict[str, Any]]:
    """Texts with the candidates of every token, of which the target is half sure."""
    random, made = np.random.default_rng(0), list[dict[str, Any]]()
    for _ in range(count):
        ids = random.integers(1, 40_000, (129, 8))
        ids[:, 0] = random.permutation(40_000)[:129]
        logits = random.normal(0.0, 0.5, (129, 8))
        logits[:, 0] += 3.0
        texts = {"topk": ids[1:].tolist(), "logits": logits[1:].tolist()}
        prompt = random.integers(1, 40_000, 60).tolist()
        made.append({"group": "any", "prompt": prompt, "tokens": ids[1:, 0].tolist()} | texts)
    return made


def gain(monkeypatch: pytest.MonkeyPatch, fixed: int = 0) -> float:
    """Speed over plain decoding, on a clock of what steps and calls take."""
    told = speed(answers(12), HEAD, "packed", "1", fixed=fixed, put=monkeypatch.setattr)["any"]
    return told["plain"] / told["recipe"]


def test_a_cheap_head_comes_near_the_best_fixed_size(monkeypatch: pytest.MonkeyPatch) -> None:
    best = max(gain(monkeypatch, fixed) for fixed in (2, 3, 4))
    assert best > 1.1, "one token a step pays"
    assert gain(monkeypatch) >= 0.97 * best
