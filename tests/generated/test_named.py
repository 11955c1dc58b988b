"""Hosts that users could have, by name: each is served as ONNX Runtime serves its file, or refused
in one line that says why."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.generated.named import NAMED
from tests.generated.outcome import of


@pytest.mark.parametrize("name", list(NAMED))
def test_it_is_served_right_or_refused(name: str, tmp_path: Path) -> None:
    host = NAMED[name]
    outcome = of(host.settings, host.choice, tmp_path)
    assert outcome.kind in ("equal", "refused"), outcome.line
    if outcome.kind == "equal":
        assert host.served, f"{name}: served, and should have been refused"
        return
    assert host.refusal is not None, f"{name}: refused, and should have been served: {outcome.line}"
    assert "\n" not in outcome.line
    assert re.search(host.refusal, outcome.line.partition(": ")[2]), outcome.line
