"""Engines over the toy session, and the real tokenizer."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent))

from toy_session import FLAT, ToySession

from graftline.recipe import recipe
from graftline.runtimes.control.costs import Costs
from graftline.runtimes.engine import Engine
from graftline.runtimes.text.tokenizer import Tokenizer
from tests.tiny_checkpoints import write_tokenizer


@pytest.fixture
def make_engine() -> Callable[..., Engine]:
    def make(name: str = "plain", costs: Costs | None = FLAT, **session: Any) -> Engine:
        return Engine(ToySession(**session), None, {"eos_token_id": 0}, recipe(name), costs)

    return make


@pytest.fixture
def prompts() -> list[list[int]]:
    """Ragged prompts with repetition, as ids of the toy vocabulary."""
    rng = np.random.default_rng(7)
    made: list[list[int]] = []
    for _ in range(12):
        part = rng.integers(1, 40, int(rng.integers(1, 9))).tolist()
        made.append((part * int(rng.integers(1, 5)))[:30])
    return made


@pytest.fixture(scope="session")
def bytewise(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    """Every byte is a token, and 256 ends a text."""
    folder = tmp_path_factory.mktemp("bytes")
    write_tokenizer(folder)
    return Tokenizer.from_folder(folder)
