"""Checkpoints that are refused: damaged, foreign or hostile."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from graftline.errors import CheckpointError
from graftline.models import open_checkpoint


class Bomb:
    """Unpickled, it opens a file for writing."""

    def __reduce__(self) -> tuple[Callable[..., object], tuple[str]]:
        return open, ("exploded", "w")  # type: ignore[return-value]


def refused(path: Path, words: str) -> None:
    """A checkpoint is refused in one line that matches `words`."""
    with pytest.raises(CheckpointError, match=words) as caught:
        open_checkpoint(path).host()
    assert "\n" not in str(caught.value)
