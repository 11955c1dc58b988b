"""A predictable host, and a cache of each test's own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from graftline.models.training.answers import Sampling
from graftline.models.training.head_lesson import HeadSettings
from graftline.models.training.kinds import Head
from graftline.models.training.run import Data, Job
from tests.models.training.predictable import Known, conversations, write_host

STEPS = 60


@pytest.fixture(scope="session")
def host_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_host(tmp_path_factory.mktemp("predictable") / "host")


@pytest.fixture(scope="session")
def deep_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with layers enough for EAGLE-3."""
    folder = tmp_path_factory.mktemp("predictable") / "deep"
    return write_host(folder, num_hidden_layers=8)


@pytest.fixture
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Where graftline keeps things in this test."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "graftline" / "training"


MakeJob = Callable[..., Job]


@pytest.fixture
def job(host_folder: Path, deep_folder: Path, cache: Path, tmp_path: Path) -> MakeJob:
    """Makes a job of a few steps on answers that are known."""

    def make(
        kind: str = "medusa", form: str = "v2", answerer: Any = None, out: str = "head",
        count: int = 24, minutes: float | None = None, **settings: Any,
    ) -> Job:  # fmt: skip
        known = answerer or Known()
        deep = kind in ("eagle3", "dflash", "dspark", "lora-drop", "router")
        folder = deep_folder if deep else host_folder
        options: dict[str, Any] = {"steps": STEPS, "tokens": 256, "rate": 2e-2, **settings}
        data = Data(conversations(count), lambda: known, "known", Sampling())
        return Job(
            Head(kind, form, exit=1), "host", folder, tmp_path / out, data, HeadSettings(**options),
            minutes, "graftline train",
        )  # fmt: skip

    return make
