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
from graftline.models.diffusers_folder import DiffusersFolder, sampling_of
from graftline.sampling.spec import Sampling
from tests.kinds.samplers import DECODER, DENOISER, SAMPLING, built

STABLE: dict[str, Any] = {
    "_class_name": "DDIMScheduler", "_diffusers_version": "0.35.1", "beta_start": 0.00085,
    "beta_end": 0.012, "beta_schedule": "scaled_linear", "num_train_timesteps": 1000,
    "clip_sample": False, "set_alpha_to_one": False, "steps_offset": 1, "trained_betas": None,
    "prediction_type": "v_prediction", "timestep_spacing": "trailing", "skip_prk_steps": True,
}  # fmt: skip


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


def read(tmp_path: Path, config: dict[str, Any]) -> Sampling:
    file = tmp_path / "scheduler_config.json"
    file.write_text(json.dumps(config))
    return sampling_of(file)


def test_configs_become_samplings(tmp_path: Path) -> None:
    assert read(tmp_path, STABLE) == Sampling(
        "v", "ddim", 50, betas="scaled-linear", beta_start=0.00085, beta_end=0.012, offset=1,
        spacing="trailing", final="first",
    )  # fmt: skip
    assert read(tmp_path, {"_class_name": "DDIMScheduler"}).clip == 1.0
    euler = read(tmp_path, {"_class_name": "EulerDiscreteScheduler"})
    assert (euler.scheduler, euler.spacing, euler.clip) == ("euler", "linspace", 0.0)
    flow = read(tmp_path, {"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 3.0})
    assert (flow.prediction, flow.scheduler, flow.shift) == ("flow", "flow-match", 3.0)
    lcm = read(tmp_path, {"_class_name": "LCMScheduler", "original_inference_steps": 60})
    assert (lcm.scheduler, lcm.original_steps, lcm.betas) == ("lcm", 60, "scaled-linear")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"_class_name": "PNDMScheduler"}, "_class_name is PNDMScheduler; did you mean"),
        ({"use_karras_sigmas": True}, "use_karras_sigmas is True; only False can be put in a gr"),
        ({"prediction_type": "sampel"}, "prediction_type is 'sampel'; did you mean 'sample'"),
        ({"beta_startt": 1}, "unknown field 'beta_startt'; did you mean 'beta_start'"),
        ({"beta_end": 2.0}, "sampling.beta_end is 2.0; it must be less than 1"),
        ({"steps_offset": "1"}, 'offset is "1", not a whole number'),
    ],
)  # fmt: skip
def test_what_is_not_known_is_refused_by_its_field(
    tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    with pytest.raises(CheckpointError, match=message):
        read(tmp_path, STABLE | change)


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    place = write_folder(tmp_path / "sd", STABLE, scale=None)
    with pytest.raises(CheckpointError, match=r"no config.json of the VAE says scaling_factor"):
        DiffusersFolder(place).spec()
    told = tmp_path / "spec.toml"
    told.write_text(SAMPLING, encoding="utf-8")
    assert optimize(place, tmp_path / "out.graft", passes="collapse-loop", spec=told)
    (place / "unet" / "model.onnx").unlink()
    with pytest.raises(CheckpointError, match=r"no unet/model.onnx or transformer/model.onnx"):
        open_checkpoint(place).host()
