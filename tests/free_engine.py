"""An engine that drafts at every step, whatever it costs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from graftline.runtimes.load import load


def free(path: Path, **options: Any) -> Any:
    """As `load` opens it, without costs and without the controllers that were made of them."""
    engine: Any = load(path, **options)
    engine.policies.costs = None
    engine.policies._made.clear()
    return engine


def answers_are_plains(path: Path, prompts: Sequence[list[int]], temperature: float) -> None:
    """Assert that a bundle's recipe, which drafts at every step, gives plain's tokens, alone and in
    a batch."""
    engine = free(path)
    options: dict[str, Any] = {"max_new_tokens": 30, "ignore_eos": True}
    options |= {"temperature": temperature, "seed": 3}
    plain = [engine.generate(p, recipe="plain", **options).tokens for p in prompts]
    alone = [engine.generate(p, **options) for p in prompts]
    assert [r.tokens for r in alone] == plain
    assert sum(r.stats.drafted for r in alone) > 30
    together = engine.generate(prompts, recipe="plain", **options)
    batch = engine.generate(prompts, **options)
    assert [r.tokens for r in batch] == [r.tokens for r in together]
    assert sum(r.stats.drafted for r in batch) > 30
