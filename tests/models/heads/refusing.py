"""Draft heads that are refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from graftline.errors import CheckpointError
from graftline.models.heads import open_head


def refuses(path: Path, words: str, **options: Any) -> None:
    """The head is refused in one line that matches `words` and leads with its path."""
    with pytest.raises(CheckpointError, match=words) as caught:
        open_head(path, **options)
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith(str(path))
