"""Every kernel compiles to machine code for every architecture, and its needs are printed."""

from __future__ import annotations

import re

import pytest

from graftline.errors import BackendError
from graftline.plugins import PLUGINS
from graftline.plugins.compile import CAPABILITIES, SHARED_LIMIT, assemble, compile_kernel
from graftline.plugins.spec import Values

pytest.importorskip("triton", reason="kernels need triton (pip install graftline[kernels])")

NODES, HEADS, KV_HEADS, SIZE, SLOTS, VOCABULARY = 64, 32, 8, 128, 8192, 128_256
Shapes = list[tuple[int, ...]]
LLAMA_8B: dict[str, tuple[Shapes, Values]] = {
    "CandidateUpdate": (
        [(VOCABULARY, 8), (1, NODES), (1, NODES), (1, NODES, 8), (1, NODES)], {}
    ),
    "DraftTree": ([(VOCABULARY, 8), (1,), (NODES,), (NODES,)], {"levels": 6}),
    "HeadTree": ([(1, 4, VOCABULARY), (1,), (NODES,), (NODES,)], {"width": 10}),
    "KVCommit": ([(64, KV_HEADS, SLOTS, SIZE), (1, NODES), (1,), (1,)], {}),
    "TreeAttention": (
        [(1, HEADS, NODES, SIZE), *[(1, KV_HEADS, SLOTS, SIZE)] * 2, (1, NODES), (1,)],
        {"scale": SIZE**-0.5, "softcap": 30.0, "window": 4096},
    ),
    "TreeAttentionMerge": (
        [(1, HEADS, 8, NODES, SIZE), *[(1, HEADS, 8, NODES)] * 2, (1, HEADS, NODES, SIZE)], {}
    ),
    "TreeAttentionParts": (
        [(1, HEADS, NODES, SIZE), *[(1, KV_HEADS, SLOTS, SIZE)] * 2, (1, NODES), (1,)],
        {"scale": SIZE**-0.5, "parts": 8},
    ),
    "TreeGrow": ([(1, 10), (1, 10, 10), (1, 10, 10)], {"beam": 10}),
    "TreePrune": ([(1, 511)] * 3, {"rows": 60}),
    "TreeSample": (
        [*[(1, NODES, VOCABULARY)] * 2, (1, NODES), (1, NODES), (1, 2, NODES)], {}
    ),
    "TreeVerify": ([(1, NODES)] * 3, {}),
    "Uniforms": ([(1,), (1,)], {"rows": NODES}),
}  # fmt: skip


@pytest.mark.parametrize("name", PLUGINS)
def test_kernels_compile(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """For the shapes of an 8B Llama with a tree of 64 nodes, in half precision."""
    plugin = PLUGINS[name]
    shapes, values = LLAMA_8B[name]
    for capability in CAPABILITIES:
        made = compile_kernel(plugin, shapes, "float16", values, capability)
        with capsys.disabled():
            print(
                f"\n{name:16} sm_{capability:<4} registers {made.registers:3}  "
                f"stack {made.stack:4} B  shared {made.shared:6} B  threads {made.threads}", end=""
            )  # fmt: skip
        assert made.shared <= SHARED_LIMIT[capability]
        assert made.registers * made.threads <= 65_536
        entry = re.search(rf"\.entry {made.name}\(([^)]*)\)", made.ptx)
        assert entry is not None
        count = len(plugin.inputs) + len(plugin.scalars) + len(plugin.outputs)
        assert entry[1].count(".param") == count
        if capability in (90, 120):  # parameters were cut from this text: is it still a program?
            assert assemble(made.ptx, capability)[:4] == b"\x7fELF"


def test_other_types() -> None:
    shapes, values = LLAMA_8B["KVCommit"]
    sizes = {
        dtype: compile_kernel(PLUGINS["KVCommit"], shapes, dtype, values, 90).ptx
        for dtype in ("float32", "float16", "bfloat16")
    }
    assert sizes["float32"] != sizes["float16"]
    with pytest.raises(BackendError, match="KVCommit: no kernel for float64; use float32"):
        compile_kernel(PLUGINS["KVCommit"], shapes, "float64", values, 90)
    with pytest.raises(BackendError, match="sm_75 is not one of 80, 89, 90, 100, 120"):
        compile_kernel(PLUGINS["KVCommit"], shapes, "float16", values, 75)


def test_too_much_shared_memory_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SHARED_LIMIT, 89, 16)
    shapes, values = LLAMA_8B["TreePrune"]
    with pytest.raises(BackendError, match=r"TreePrune needs \d+ bytes .* and sm_89 has 16; use"):
        compile_kernel(PLUGINS["TreePrune"], shapes, "float32", values, 89)
