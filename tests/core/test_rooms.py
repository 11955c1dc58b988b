"""The room rule: what may import what (see CONTRIBUTING.md)."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ROOMS = ("passes", "plugins", "models", "runtimes")
OUTSIDE = {
    "__init__", "__main__", "assemble", "check", "cli", "commands", "compile", "compiled", "doctor",
    "by_block", "engines", "plan", "probe", "proof", "recheck", "whole",
}  # fmt: skip
"""Modules of graftline/ that are not the core: they bring the rooms together."""
OPERATORS = (
    "spec", "tree_attention", "tree_verify", "kv_commit", "candidate_update", "draft_tree",
    "uniforms",
)  # fmt: skip
"""What passes take from plugins: operators as data (a name, an ONNX function, a numpy reference).
"""
MAY: dict[str, set[str]] = {
    "core": set(),
    "plugins": set(),
    "models": set(),
    "passes": {f"plugins.{file}" for file in OPERATORS},
    "runtimes": {"plugins"},
}
HEAVY = {
    "torch": "models", "transformers": "models", "onnxruntime": "runtimes",
    "tensorrt": "runtimes", "tensorrt_rtx": "runtimes", "cuda": "runtimes",
}  # fmt: skip
GPU = {"tensorrt": "trt/engine.py", "tensorrt_rtx": "trt/engine.py", "cuda": "trt/cuda.py"}
"""The one file of the runtime that imports each of these, and inside functions only."""
LOADS_BY_NAME = {"build_tensorrt.py", "optional.py"}
"""Besides the plugins, the files that import a library by its name. Engines are built by the
compiler: TensorRT and TensorRT-RTX have one API, and a build loads the one it is for. What the base
install lacks is imported through one guard, which says how to install it."""
_NBITS = "onnxruntime.quantization.matmul_nbits_quantizer"
_KQUANT = "onnxruntime.quantization.neural_compressor.weight_only"
QUANTIZERS = {("block_codes.py", name) for name in ("torch", _NBITS, _KQUANT)}
"""The one exception: ONNX Runtime's own quantizers, of which HQQ computes with torch."""


def imported(file: Path) -> Iterator[str]:
    """Every module a file imports anywhere, as written."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: relative import"
            yield node.module or ""
            if node.module == "graftline":
                yield from (f"graftline.{alias.name}" for alias in node.names)


def violations(room: str, file: Path) -> list[str]:
    found: list[str] = []
    for module in imported(file):
        parts = module.split(".")
        if parts[0] in ROOMS:
            found.append(f"{file}: import {module} through graftline.")
        elif parts[0] == "graftline" and len(parts) > 1 and parts[1] != room:
            target = ".".join(parts[1:])
            outside = parts[1] in OUTSIDE
            foreign = parts[1] in ROOMS and not any(
                target == m or target.startswith(f"{m}.") for m in MAY[room]
            )
            if outside or foreign:
                found.append(f"{file}: {room} may not import {module}")
    return found


def files(room: str) -> list[Path]:
    if room in ROOMS:
        return sorted((ROOT / room).rglob("*.py"))
    core = [p for p in (ROOT / "graftline").iterdir() if p.stem not in (*OUTSIDE, *ROOMS)]
    folders = [file for p in core if p.is_dir() for file in p.rglob("*.py")]
    return sorted([p for p in core if p.suffix == ".py"] + folders)


@pytest.mark.parametrize("room", MAY)
def test_rooms_import_only_what_they_may(room: str) -> None:
    assert files(room)
    assert [v for file in files(room) for v in violations(room, file)] == []


@pytest.mark.parametrize("room", MAY)
def test_heavy_libraries_stay_in_their_rooms(room: str) -> None:
    for file in files(room):
        for module in imported(file):
            owner = HEAVY.get(module.split(".")[0], room)
            assert owner == room or (file.name, module) in QUANTIZERS, (
                f"{file}: {room} may not import {module}"
            )


def test_the_gpus_libraries_are_imported_late_and_in_one_file_each() -> None:
    for file in files("runtimes"):
        for library in [m.split(".")[0] for m in imported(file)]:
            place = file.relative_to(ROOT / "runtimes").as_posix()
            assert GPU.get(library, place) == place, f"{file} imports {library}"
    for name in set(GPU.values()):
        tree = ast.parse((ROOT / "runtimes" / name).read_text(encoding="utf-8"))
        at_once = [a.name for n in tree.body if isinstance(n, ast.Import) for a in n.names]
        at_once += [n.module or "" for n in tree.body if isinstance(n, ast.ImportFrom)]
        assert not {module.split(".")[0] for module in at_once} & GPU.keys()


@pytest.mark.parametrize("room", sorted(MAY.keys() - {"plugins"}))
def test_only_the_engine_builder_loads_a_library_by_name(room: str) -> None:
    found = {f.name for f in files(room) if "import_module" in f.read_text(encoding="utf-8")}
    assert found <= LOADS_BY_NAME


def test_a_wrong_import_is_caught(tmp_path: Path) -> None:
    wrong = tmp_path / "wrong.py"
    wrong.write_text("def f():\n    from graftline.runtimes import loop\n    import passes.graft\n")
    assert len(violations("passes", wrong)) == 2
