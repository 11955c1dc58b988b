"""A bundle of a few bytes, and bundles of a decoder whose weights lie in a file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from graftline.build.optimize import optimize
from graftline.bundle.reader import Bundle
from tests.bundle.file_checkpoint import FileCheckpoint
from tests.bundle.toy_bundle import write


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return write(tmp_path / "toy.graft")


@pytest.fixture(scope="session")
def host(
    known_checkpoints: dict[Path, Any], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], Path]:
    """Paths that `optimize` opens as a decoder in bf16 or another precision."""
    folder = tmp_path_factory.mktemp("files")

    def of(dtype: str) -> Path:
        path = folder / f"{dtype}.safetensors"
        known_checkpoints.setdefault(path, FileCheckpoint(path, dtype))
        return path

    return of


@pytest.fixture(scope="session")
def fp32(host: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return optimize(host("BF16"), tmp_path_factory.mktemp("b") / "fp32.graft", recipe="suffix")


@pytest.fixture(scope="session")
def int4(host: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return optimize(host("BF16"), tmp_path_factory.mktemp("b") / "int4.graft", dtype="int4")
