"""Folders in the layout of diffusers: a scheduler's config is the spec, or is refused by field."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import onnx_ir as ir
import pytest

from graftline.build.optimize import optimize
from graftline.errors import CheckpointError
from graftline.models.checkpoint import open_checkpoint
from graftline.models.diffusers.folder import DiffusersFolder
from tests.kinds.samplers import DECODER, DENOISER, SAMPLING, built
from tests.models.diffusers.folders import STABLE


def write_folder(place: Path, scheduler: dict[str, Any], scale: float | None = 0.5) -> Path:
    """unet, vae_decoder and scheduler, as an export to ONNX leaves them."""
    text = DENOISER.replace("float[B] t", "float[steps] t")
    for name, graph in (("unet", text), ("vae_decoder", DECODER)):
        (place / name).mkdir(parents=True)
        ir.save(built(graph), place / name / "model.onnx")
    config = {} if scale is None else {"scaling_factor": scale, "shift_factor": 0.1}
    (place / "vae_decoder" / "config.json").write_text(json.dumps(config))
    (place / "scheduler").mkdir()
    (place / "scheduler" / "scheduler_config.json").write_text(json.dumps(scheduler))
    (place / "model_index.json").write_text('{"_class_name": "StableDiffusionPipeline"}')
    return place


def test_a_folder_is_its_own_spec(tmp_path: Path) -> None:
    place = write_folder(tmp_path / "sd", STABLE)
    assert isinstance(open_checkpoint(place), DiffusersFolder)
    passes = "collapse-loop | join"
    made = optimize(place, tmp_path / "out.graft", passes=passes, steps=(1, 2))
    rows = {(w.graft, w.law): w.status for w in made.manifest.laws}
    assert rows["ort-cpu", "whole"] == rows["steps-2", "form"] == "held"
    facts = made.manifest.facts
    assert (facts.scale, facts.shift) == (0.5, 0.1)  # type: ignore[attr-defined]


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    place = write_folder(tmp_path / "sd", STABLE, scale=None)
    with pytest.raises(CheckpointError, match=r"no config.json of the VAE says scaling_factor"):
        DiffusersFolder(place).spec()
    told = tmp_path / "spec.toml"
    told.write_text(SAMPLING, encoding="utf-8")
    assert optimize(place, tmp_path / "out.graft", passes="collapse-loop", spec=told)
    (place / "unet" / "model.onnx").unlink()
    with pytest.raises(CheckpointError, match=r"no unet/config.json or unet/model.onnx or"):
        open_checkpoint(place).host()
