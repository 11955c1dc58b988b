"""A plugin's digest: an engine and the process that runs it must use the same plugin."""

from __future__ import annotations

import ast
import hashlib
import json
from dataclasses import asdict
from pathlib import Path

from graftline.plugins.spec import Plugin

KERNELS = Path(__file__).parent / "kernels"


def fingerprint(plugin: Plugin) -> str:
    """SHA-256 over the operator's name, its schema, and the source of its kernel.

    The source stands for the PTX, which depends on shapes and lies in the engine, under the
    bundle's own digests: a machine that runs engines needs no Triton to compare.
    """
    schema = {
        "name": plugin.name,
        "inputs": [asdict(t) for t in plugin.inputs],
        "outputs": [asdict(t) for t in plugin.outputs],
        "attributes": dict(plugin.attributes),
        "static": plugin.static,
        "scalars": plugin.scalars,
        "aliases": dict(plugin.aliases),
    }
    seen = hashlib.sha256(json.dumps(schema, sort_keys=True).encode())
    for file in _sources(KERNELS / f"{plugin.module}.py"):
        seen.update(file.read_bytes())
    return seen.hexdigest()


def _sources(file: Path) -> list[Path]:
    """The file and those of the kernels that it imports, directly or not, each once."""
    found, waiting = [file], [file]
    while waiting:
        for node in ast.walk(ast.parse(waiting.pop().read_text(encoding="utf-8"))):
            name = (node.module or "") if isinstance(node, ast.ImportFrom) else ""
            inner = KERNELS / f"{name.rpartition('.')[2]}.py"
            if name.startswith("graftline.plugins.kernels") and inner not in found:
                found.append(inner)
                waiting.append(inner)
    return found
