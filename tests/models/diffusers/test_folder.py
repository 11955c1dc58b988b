"""Folders in the layout of diffusers: a scheduler's config is the spec, or is refused by field."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from graftline.build.optimize import optimize
from graftline.errors import CheckpointError
from graftline.models.checkpoint import open_checkpoint
from graftline.models.diffusers.folder import DiffusersFolder
from graftline.runtimes.one_pass.engine import load_decoder
from tests.kinds.samplers import DECODER, DENOISER, SAMPLING, built
from tests.models.diffusers.folders import FLUX, HALVING, STABLE, TINY_VAE, write_pipeline


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


def test_flux_is_drawn_as_its_pipeline_draws(tmp_path: Path) -> None:
    flow = {"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 3.0}
    place = write_folder(tmp_path / "flux", flow)
    assert DiffusersFolder(place).spec().sampling.spacing == "leading"
    (place / "unet" / "config.json").write_text(json.dumps(FLUX))
    sampling = DiffusersFolder(place).spec().sampling
    assert (sampling.spacing, sampling.shift) == ("trailing", 3.0)


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


def test_what_save_pretrained_wrote_is_drawn_with(tmp_path: Path) -> None:
    euler = {"_class_name": "EulerDiscreteScheduler", "timestep_spacing": "trailing"}
    place = write_pipeline(tmp_path / "turbo", HALVING | {"in_channels": 4, "out_channels": 4},
                           TINY_VAE, euler)  # fmt: skip
    made = optimize(place, tmp_path / "out.graft", passes="collapse-loop | join", steps=(1, 2))
    rows = {(w.graft.partition("{")[0], w.law): w for w in made.manifest.laws}
    held = [("export", "checkpoint"), ("ort-cpu", "whole"), ("steps-2", "form"),
            ("collapse-loop", "neutral"), ("join", "neutral")]  # fmt: skip
    assert {rows[row].status for row in held} == {"held"}
    both = "[2, 4, 32, 32] and [2, 3, 64, 64]"  # what the UNet says, and the VAE's image
    assert both in rows["export", "checkpoint"].what
    engine = load_decoder(made.path)
    noise = np.random.default_rng(0).standard_normal((1, 4, 8, 8)).astype(np.float32)
    image = engine.decode(noise, class_labels=np.array([2]))
    np.testing.assert_allclose(image, drawn_by_diffusers(place, euler, noise), atol=1e-4)


def drawn_by_diffusers(place: Path, config: dict[str, Any], noise: np.ndarray) -> np.ndarray:
    """One step of the pipeline, by the modules and the scheduler of diffusers."""
    import torch
    from diffusers import AutoencoderTiny, EulerDiscreteScheduler, UNet2DModel

    unet = UNet2DModel.from_pretrained(place / "unet", variant="fp16", torch_dtype=torch.float32)
    vae, scheduler = AutoencoderTiny.from_pretrained(place / "vae"), EulerDiscreteScheduler(
        **{k: v for k, v in config.items() if not k.startswith("_")}
    )  # fmt: skip
    scheduler.set_timesteps(1)
    x = torch.from_numpy(noise) * scheduler.init_noise_sigma
    (t,) = scheduler.timesteps
    with torch.no_grad():
        seen = scheduler.scale_model_input(x, t)
        said = unet.eval()(seen, t, class_labels=torch.tensor([2])).sample
        return vae.eval().decode(scheduler.step(said, t, x).prev_sample).sample.numpy()
