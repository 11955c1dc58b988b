"""Registration with TensorRT's own Python layer and base classes, short of a builder."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from graftline.errors import BackendError
from graftline.plugins import PLUGINS
from graftline.plugins.launch import plan_for
from graftline.plugins.quick_plugin import register

from .cases import every_plugin

NAMES = {"float32": "FLOAT", "int64": "INT64", "int32": "INT32"}


def test_every_plugin_is_what_tensorrt_expects() -> None:
    pytest.importorskip("tensorrt_lean_bindings", reason="pip install tensorrt-lean-cu13-bindings")
    pytest.importorskip("triton", reason="pip install graftline[kernels]")
    done = subprocess.run(
        [sys.executable, "-m", "tests.plugins.lean_tensorrt"],
        capture_output=True, text=True, cwd=Path(__file__).parents[2], check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout.splitlines()[-1])
    assert set(said) == set(PLUGINS)
    for name, inputs, values in every_plugin():
        plugin, answer = PLUGINS[name], said[name]
        outputs = plugin.empty(inputs, plugin.values(values))
        plan, scalars = plan_for(plugin, [x.shape for x in inputs], plugin.values(values))
        names = [t.name for t in plugin.inputs]
        aliases = [plugin.aliases.get(t.name) for t in plugin.outputs]
        assert answer == {
            "found": True,
            "ahead": True,
            "types": [NAMES[str(x.dtype)] for x in outputs],
            "aliases": [-1 if a is None else names.index(a) for a in aliases],
            "shapes": [list(x.shape) for x in outputs],
            "grid": list(plan.grid),
            "threads": 32 * plan.warps,
            "scalars": scalars,
            "parameters": len(inputs) + len(scalars) + len(outputs),
        }, name


def test_without_tensorrt_one_line_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with pytest.raises(BackendError, match=r"plugins need TensorRT 11 .*pip install tensorrt-cu13"):
        register(PLUGINS.values(), 90)
