"""Files changed, and code run, in a copy of the tree."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path


def changed(path: Path, old: str, new: str) -> None:
    """One line of a table: that it is where CONTRIBUTING.md says is part of the test."""
    text = path.read_text()
    assert text.count(old) >= 1, f"{path} has no {old!r}"
    path.write_text(text.replace(old, new, 1))


def ran(tree: Path, code: str, *args: str) -> str:
    """What a fresh process prints in the copy."""
    here = {**os.environ, "PYTHONPATH": str(tree)}
    command = [sys.executable, "-c", code, *args]
    made = subprocess.run(command, cwd=tree, env=here, capture_output=True, text=True, check=False)
    assert made.returncode == 0, made.stderr[-1500:]
    return made.stdout.strip()
