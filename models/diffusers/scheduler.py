"""A scheduler's config of diffusers as a sampling of ours, or refused by its field."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from graftline.errors import CheckpointError, GraftlineError, nearest
from graftline.models.config_file import read_json
from graftline.sampling.spec import Sampling
from graftline.typed_json import Misfit, read

STEPS = 50
"""Of the whole loop, which no config says; `--steps` chooses others."""
SCHEDULERS: Mapping[str, Mapping[str, Any]] = {
    "DDIMScheduler": {"scheduler": "ddim", "clip_sample": True},
    "DDPMScheduler": {
        "scheduler": "ddpm", "clip_sample": True, "variance_type": "fixed_small",
    },
    "EulerDiscreteScheduler": {"scheduler": "euler", "timestep_spacing": "linspace"},
    "EulerAncestralDiscreteScheduler": {
        "scheduler": "euler-ancestral", "timestep_spacing": "linspace",
    },
    "FlowMatchEulerDiscreteScheduler": {"scheduler": "flow-match", "prediction_type": "flow"},
    "LCMScheduler": {
        "scheduler": "lcm", "beta_start": 0.00085, "beta_end": 0.012,
        "beta_schedule": "scaled_linear",
    },
}  # fmt: skip
"""By class name, our scheduler and what its config leaves out."""
FIELDS: Mapping[str, str] = {
    "num_train_timesteps": "train_steps", "beta_start": "beta_start", "beta_end": "beta_end",
    "beta_schedule": "betas", "prediction_type": "prediction", "timestep_spacing": "spacing",
    "steps_offset": "offset", "set_alpha_to_one": "final", "shift": "shift",
    "original_inference_steps": "original_steps", "timestep_scaling": "timestep_scaling",
    "scheduler": "scheduler",
}  # fmt: skip
"""Their fields and ours."""
WORDS: Mapping[str, Mapping[Any, str]] = {
    "betas": {"linear": "linear", "scaled_linear": "scaled-linear", "squaredcos_cap_v2": "cosine"},
    "prediction": {"epsilon": "epsilon", "v_prediction": "v", "sample": "x0", "flow": "flow"},
    "final": {True: "one", False: "first"},
}
"""Their values and ours, where they differ."""
NEUTRAL: Mapping[str, Any] = {
    "thresholding": False, "rescale_betas_zero_snr": False, "trained_betas": None,
    "use_karras_sigmas": False, "use_exponential_sigmas": False, "use_beta_sigmas": False,
    "interpolation_type": "linear", "final_sigmas_type": "zero", "timestep_type": "discrete",
    "sigma_min": None, "sigma_max": None, "invert_sigmas": False,
    "stochastic_sampling": False, "shift_terminal": None, "variance_type": "fixed_small",
}  # fmt: skip
"""Fields that change the formulas unless they have this value."""
IDLE = frozenset({
    "clip_sample", "clip_sample_range", "dynamic_thresholding_ratio", "sample_max_value",
    "skip_prk_steps", "base_shift", "max_shift", "base_image_seq_len", "max_image_seq_len",
    "time_shift_type", "use_dynamic_shifting",
})  # fmt: skip
"""Fields that say nothing more, or are read with another."""

UNEVEN = "DDIMScheduler", "timestep_spacing", "linspace"
"""A class, a field and its value: there every step goes `num_train_timesteps // steps` down,
whatever lies between two of its time steps. Elsewhere that is the next one, but for rounding where
the steps do not divide the training's."""


def sampling_of(file: Path) -> Sampling:
    """How samples are drawn, by a scheduler's config. Raises CheckpointError for a scheduler, a
    field or a value that is not known."""
    if not file.is_file():
        raise CheckpointError(f"{file}: missing; say the scheduler with --spec FILE")
    config = read_json(file)
    name = str(config.get("_class_name"))
    if name not in SCHEDULERS:
        raise CheckpointError(
            f"{file}: _class_name is {name}{nearest(name, SCHEDULERS)}; or say another scheduler "
            "with --spec FILE"
        )
    if name == UNEVEN[0] and config.get(UNEVEN[1]) == UNEVEN[2]:
        raise CheckpointError(
            f"{file}: {UNEVEN[1]} is 'linspace'; diffusers' DDIM then ends a step elsewhere than "
            "it begins the next, as no formula has it; set 'trailing', or use --spec FILE"
        )
    if config.get("use_dynamic_shifting"):
        length, most = config.get("max_image_seq_len", 4096), config.get("max_shift", 1.15)
        raise CheckpointError(
            f"{file}: use_dynamic_shifting is True: shift grows with the image, and a graph has "
            f"one; say it with --spec FILE (exp({most}) for a sequence of {length})"
        )
    said = {**SCHEDULERS[name], **{k: v for k, v in config.items() if not k.startswith("_")}}
    rows: dict[str, Any] = {"steps": STEPS, "prediction": "epsilon"}
    for field, value in said.items():
        if field in FIELDS:
            ours = FIELDS[field]
            known = WORDS.get(ours)
            if known is not None and value not in known:
                close = nearest(str(value), map(str, known))
                raise CheckpointError(f"{file}: {field} is {value!r}{close}")
            rows[ours] = value if known is None else known[value]
        elif field in NEUTRAL and value != NEUTRAL[field]:
            raise CheckpointError(
                f"{file}: {field} is {value!r}; only {NEUTRAL[field]!r} can be put in a graph"
            )
        elif field not in NEUTRAL and field not in IDLE:
            raise CheckpointError(f"{file}: unknown field '{field}'{nearest(field, FIELDS)}")
    if said.get("clip_sample"):
        rows["clip"] = said.get("clip_sample_range", 1.0)
    try:
        sampling: Sampling = read(Sampling, rows)
        replace(sampling, steps=1).check()
    except (Misfit, GraftlineError) as error:
        raise CheckpointError(f"{file}: {error}") from error
    return sampling
