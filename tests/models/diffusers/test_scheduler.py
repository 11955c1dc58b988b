"""Schedulers' configs: what is read draws what diffusers' own scheduler draws, or is refused."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from graftline.errors import CheckpointError
from graftline.evaluate import Array
from graftline.models.diffusers.scheduler import SCHEDULERS, sampling_of
from graftline.sampling.loop import draw
from graftline.sampling.schedule import trajectory
from graftline.sampling.spec import Sampling
from tests.models.diffusers.folders import STABLE

SHAPE = (2, 3, 4, 4)
LARGEST = 1e-4
"""Of the largest number of a sample: diffusers' tables are fp32."""
ODD = {"steps_offset": 1, "beta_schedule": "scaled_linear", "beta_end": 0.012}
CONFIGS: list[dict[str, Any]] = [
    STABLE,
    {"_class_name": "DDIMScheduler"},
    {"_class_name": "DDIMScheduler", "timestep_spacing": "trailing", "clip_sample_range": 0.5},
    {"_class_name": "DDPMScheduler"},
    {"_class_name": "DDPMScheduler", "prediction_type": "sample", "clip_sample": False},
    {"_class_name": "DDPMScheduler", "timestep_spacing": "linspace", "clip_sample": False},
    {"_class_name": "EulerDiscreteScheduler"},
    {"_class_name": "EulerDiscreteScheduler", "timestep_spacing": "trailing", **ODD},
    {"_class_name": "EulerDiscreteScheduler", "timestep_spacing": "leading", **ODD},
    {"_class_name": "EulerAncestralDiscreteScheduler", "prediction_type": "v_prediction"},
    {"_class_name": "EulerAncestralDiscreteScheduler", "timestep_spacing": "trailing", **ODD},
    {"_class_name": "FlowMatchEulerDiscreteScheduler"},
    {"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 3.0},
    {"_class_name": "LCMScheduler", "set_alpha_to_one": False},
    {"_class_name": "LCMScheduler", "original_inference_steps": 60, "clip_sample": True},
]


def read(tmp_path: Path, config: dict[str, Any]) -> Sampling:
    file = tmp_path / "scheduler_config.json"
    file.write_text(json.dumps(config))
    return sampling_of(file)


def predict(x: Array, time: float) -> Array:
    """Stands for a network that minds both."""
    return np.tanh(0.7 * x) + 0.2 * np.sin(time / 150)


def theirs(
    config: dict[str, Any], steps: int, noise: Array, fresh: list[Array], **given: Any
) -> Array:
    """What the scheduler of diffusers makes of noise, adding `fresh` where it adds some."""
    import diffusers
    import torch

    scheduler = getattr(diffusers, config["_class_name"]).from_config(config)
    left = iter(fresh)
    module = sys.modules[type(scheduler).__module__]
    with pytest.MonkeyPatch.context() as patched:
        if hasattr(module, "randn_tensor"):
            new = lambda *args, **options: torch.from_numpy(next(left))  # noqa: E731
            patched.setattr(module, "randn_tensor", new)
        scheduler.set_timesteps(steps, **given)
        x = torch.from_numpy(noise) * getattr(scheduler, "init_noise_sigma", 1.0)
        for t in scheduler.timesteps:
            scaled = getattr(scheduler, "scale_model_input", lambda one, at: one)
            said = predict(scaled(x, t).numpy(), float(t))
            x = scheduler.step(torch.from_numpy(said), t, x).prev_sample
    return x.numpy()


@pytest.mark.parametrize("steps", [1, 2, 8])
@pytest.mark.parametrize("config", CONFIGS, ids=lambda c: c["_class_name"])
def test_what_is_read_draws_what_diffusers_draws(
    config: dict[str, Any], steps: int, tmp_path: Path
) -> None:
    random = np.random.default_rng(steps)
    noise, *fresh = (random.standard_normal(SHAPE) for _ in range(steps + 1))
    sampling = read(tmp_path, config)
    got = draw(replace(sampling, steps=steps), noise, fresh, predict)
    expected = theirs(config, steps, noise, fresh)
    assert np.abs(got - expected).max() <= LARGEST * np.abs(expected).max()


@pytest.mark.parametrize("steps", [1, 2, 8])
@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_a_trailing_flow_is_drawn_as_the_pipeline_of_flux(shift: float, steps: int) -> None:
    noise = np.random.default_rng(steps).standard_normal(SHAPE)
    sampling = Sampling("flow", "flow-match", steps, shift=shift, spacing="trailing")
    config = {"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": shift}
    ends = np.linspace(1.0, 1 / steps, steps).tolist()
    expected = theirs(config, steps, noise, [], sigmas=ends)
    got = draw(sampling, noise, [], predict)
    assert np.abs(got - expected).max() <= LARGEST * np.abs(expected).max()


def test_a_shift_that_grows_with_the_image_is_refused(tmp_path: Path) -> None:
    config = {"_class_name": "FlowMatchEulerDiscreteScheduler", "use_dynamic_shifting": True}
    with pytest.raises(CheckpointError, match=r"say it with --spec FILE \(exp\(1.15\) for a sequ"):
        read(tmp_path, config)


def test_every_scheduler_is_compared() -> None:
    assert {config["_class_name"] for config in CONFIGS} == set(SCHEDULERS)


@pytest.mark.parametrize("scales", [2, 3, 4])
def test_a_pyramid_goes_as_that_of_diffusers(scales: int) -> None:
    """Helios has one of its own, which ends a thousandth short of noise and of no noise."""
    import diffusers

    cuts = [scale / scales for scale in range(scales + 1)]
    theirs: Any = diffusers.HeliosScheduler(stages=scales, stage_range=cuts, gamma=1 / 3)  # type: ignore[attr-defined]
    moments = trajectory(Sampling("flow", "pyramid", 4 * scales, scales=scales)).moments
    for scale in range(scales):
        theirs.set_timesteps(4, scale)
        own = moments[4 * scale : 4 * scale + 4]
        np.testing.assert_allclose([m.time for m in own], theirs.timesteps, atol=2.5)
        np.testing.assert_allclose([m.here.noise for m in own], theirs.sigmas[:4], atol=2e-3)
        clean = 1 - theirs.ori_start_sigmas[scale]
        if scale:
            kept = 1 / (np.sqrt(1 + 3) * (1 - clean) + clean)
            expected = kept, kept * (1 - clean) / np.sqrt(1 / 3)
            assert own[0].doubled == pytest.approx(expected, abs=2e-3)


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
        ({"timestep_spacing": "linspace"}, "timestep_spacing is 'linspace'; diffusers' DDIM then"),
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
