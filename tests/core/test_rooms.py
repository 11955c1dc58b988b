"""The room rule: what may import what. The folder is the rule (see CONTRIBUTING.md)."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TOP = ("passes", "plugins", "models", "runtimes")
INNER = ("bundle", "build", "kinds", "inspection", "commands")
MAY: dict[str, set[str]] = {
    "core": set(),
    "bundle": {"core"},
    "plugins": {"core"},
    "passes": {"core", "plugins"},
    "models": {"core", "passes.anchors"},
    "runtimes": {"core", "bundle", "plugins"},
}
"""What a room imports besides itself. Those that are not named here bring the others together."""
HEAVY: dict[str, tuple[str, ...]] = {
    "torch": ("models",),
    "diffusers": ("models",),
    "transformers": ("models",),
    "onnxruntime": ("runtimes/ort", "passes/lower/quantize"),
    "tensorrt": ("runtimes/trt", "plugins"),
    "tensorrt_rtx": ("runtimes/trt",),
    "cuda": ("runtimes/trt",),
    "triton": ("plugins",),
}
"""Where a room imports a heavy library: ONNX Runtime's quantizers are no session."""
LATE = ("torch", "transformers", "diffusers", "tensorrt", "tensorrt_rtx", "cuda")
"""Libraries that the base install lacks: imported inside functions only, but for the export and the
training, which nobody opens without torch, and kernels."""
WITH_THEM = ("models/export", "models/training", "plugins/kernels")


def imported(tree: ast.AST) -> Iterator[str]:
    """Every module that a file imports anywhere, as written."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative import"
            yield node.module or ""


def room_of(module: str) -> str:
    """The room of one of our modules."""
    first = module.split(".")[1]
    return first if first in (*TOP, *INNER) else "core"


def allowed(room: str, module: str) -> bool:
    """Whether a room may import one of our modules. Nobody imports the package's own door."""
    if module == "graftline":
        return False
    name = "core" if room_of(module) == "core" else module.removeprefix("graftline.")
    return any(name == one or name.startswith(f"{one}.") for one in (*MAY[room], room))


def violations(room: str, file: Path) -> list[str]:
    found: list[str] = []
    for module in imported(ast.parse(file.read_text(encoding="utf-8"))):
        if module.split(".")[0] in TOP:
            found.append(f"{file}: import {module} through graftline.")
        elif module.split(".")[0] == "graftline" and not allowed(room, module):
            found.append(f"{file}: {room} may not import {module}")
    return found


def files(room: str) -> list[Path]:
    """The files of a room; the package's own doors, __init__ and __main__, are in none."""
    if room in (*TOP, *INNER):
        return sorted((ROOT / ("" if room in TOP else "graftline") / room).rglob("*.py"))
    core = [p for p in (ROOT / "graftline").iterdir() if p.stem not in (*TOP, *INNER)]
    inner = [file for p in core if p.is_dir() for file in p.rglob("*.py")]
    return sorted([p for p in core if p.suffix == ".py" and p.stem[:2] != "__"] + inner)


@pytest.mark.parametrize("room", MAY)
def test_rooms_import_only_what_they_may(room: str) -> None:
    assert files(room)
    assert [v for file in files(room) for v in violations(room, file)] == []


@pytest.mark.parametrize("room", MAY)
def test_heavy_libraries_stay_in_their_folders(room: str) -> None:
    for file in files(room):
        place = file.relative_to(ROOT).as_posix()
        tree = ast.parse(file.read_text(encoding="utf-8"))
        for library in {module.split(".")[0] for module in imported(tree)} & HEAVY.keys():
            assert place.startswith(HEAVY[library]), f"{place} imports {library}"
        at_once = [a.name for n in tree.body if isinstance(n, ast.Import) for a in n.names]
        at_once += [n.module or "" for n in tree.body if isinstance(n, ast.ImportFrom)]
        early = {module.split(".")[0] for module in at_once} & set(LATE)
        assert not early or place.startswith(WITH_THEM), f"{place} imports {early} at once"


@pytest.mark.parametrize("room", sorted(MAY.keys() - {"plugins"}))
def test_libraries_are_imported_by_name_through_one_guard(room: str) -> None:
    found = {f.name for f in files(room) if "import_module" in f.read_text(encoding="utf-8")}
    assert found <= {"optional.py"}


def test_a_wrong_import_is_caught(tmp_path: Path) -> None:
    wrong = tmp_path / "wrong.py"
    wrong.write_text(
        "def f():\n    from graftline.runtimes import loop\n    import passes.graft\n"
        "    from graftline.build.plan import Plan\n    import graftline\n"
    )
    assert len(violations("passes", wrong)) == 4
    assert len(violations("models", wrong)) == 4
