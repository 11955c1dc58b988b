"""A library that is not installed is one line with the command that installs it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from graftline.errors import BackendError
from graftline.models.decoder import TinyDecoder
from graftline.optional import require
from graftline.passes import GRAFTS, Pipeline
from graftline.plugins import PLUGINS
from graftline.plugins.compile import assemble, compile_kernel
from graftline.plugins.launch import launch

EXTRA = r'run: pip install "graftline\[export\]"$'


def test_what_is_there_is_imported() -> None:
    assert require("json") is sys.modules["json"]


def test_what_is_missing_is_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(BackendError, match=f"^no_such_library is not installed; {EXTRA}"):
        require("no_such_library")
    (tmp_path / "broken_library.py").write_text("import another_one")
    monkeypatch.syspath_prepend(str(tmp_path))
    words = r"^broken_library cannot be imported \(No module named 'another_one'\); run: pip"
    with pytest.raises(BackendError, match=words):
        require("broken_library", "kernels")


def test_compiling_a_kernel_without_the_kernels_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "triton", None)
    words = r'^triton is not installed; run: pip install "graftline\[kernels\]"$'
    plugin = PLUGINS["KVCommit"]
    shapes = [(1, 1, 64, 8), (1, 4), (1,), (1,)]
    for work in (
        lambda: compile_kernel(plugin, shapes, "float32", {}, 90),
        lambda: launch(plugin, [np.zeros(shape) for shape in shapes], []),
        lambda: assemble(".target sm_90", 90),
    ):
        with pytest.raises(BackendError, match=words):
            work()


@pytest.mark.parametrize("library", ["torch", "transformers", "accelerate", "gguf"])
def test_reading_a_checkpoint_without_the_export_extra(
    library: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """As `pip install graftline` leaves it: the import of `library` fails."""
    from gguf import GGUFWriter

    from graftline.models import open_checkpoint
    from graftline.models.tiny import tiny

    folder = tiny("llama", tmp_path / "hf", num_hidden_layers=1)
    writer = GGUFWriter(tmp_path / "m.gguf", "llama")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    monkeypatch.setitem(sys.modules, library, None)
    for module in [name for name in sys.modules if name.startswith("graftline.models.export")]:
        monkeypatch.delitem(sys.modules, module)
    given = tmp_path / "m.gguf" if library == "gguf" else folder
    with pytest.raises(BackendError, match=f"^{library} is not installed; {EXTRA}") as caught:
        open_checkpoint(given).host()
    assert "\n" not in str(caught.value)


def test_compiling_a_graph_without_the_export_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "networkx", None)
    with pytest.raises(BackendError, match=f"^networkx is not installed; {EXTRA}"):
        Pipeline.parse("anchors", GRAFTS).run(TinyDecoder().build())


def test_running_a_bundle_needs_the_base_install_alone(tiny_bundle: Path) -> None:
    """What only the compiler needs is not there, and nothing asks for it."""
    gone = ("networkx", "onnxscript", "platformdirs", "torch", "transformers", "gguf", "llguidance")
    code = f"import sys\nfor name in {gone}: sys.modules[name] = None\n"
    code += f"import graftline\nengine = graftline.load({str(tiny_bundle)!r})\n"
    code += "print(len(engine.generate([1, 2, 3], max_new_tokens=4, ignore_eos=True).tokens))"
    made = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert made.stdout.strip() == "4", made.stderr[-600:]
