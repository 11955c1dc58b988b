"""What the suite keeps of exports: read back it is the export, and other code is another."""

from __future__ import annotations

from pathlib import Path

import onnx_ir as ir
import pytest
from transformers.models.llama.modeling_llama import LlamaMLP

from graftline.models.export import export
from graftline.models.hf import HfCheckpoint
from graftline.models.tiny import tiny
from tests.exports import Exports


def test_a_file_gives_what_torch_gave(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tiny("llama", tmp_path / "checkpoint")
    made: list[export.Exported] = []
    real = export.export

    def counted(model: object, watch: object) -> export.Exported:
        made.append(real(model, watch))  # type: ignore[arg-type]
        return made[-1]

    def exported() -> str:
        """By a process that has not exported anything yet."""
        with monkeypatch.context() as patch:
            patch.setattr(export, "export", counted)
            Exports(tmp_path / "kept").keep(patch)
            return ir.to_onnx_text(HfCheckpoint(folder).host().model)

    first = exported()
    assert exported() == first
    assert len(made) == 1
    forward = LlamaMLP.forward
    monkeypatch.setattr(LlamaMLP, "forward", lambda self, x: -forward(self, x))
    assert exported() != first
    assert len(made) == 2
