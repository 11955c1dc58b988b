"""A pipeline of SD-Turbo's shape (UNet 866M, VAE 84M, fp16) through export and every graft.

    python tests/bench/diffusion.py             weights are holes of a sparse file: zeros
    python tests/bench/diffusion.py --proof     random weights on disk, and a bundle with its proof

Time and peak memory are those of this process.
"""

from __future__ import annotations

import argparse
import json
import math
import resource
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from graftline.build.compiled import Compiler
from graftline.build.composed import composed
from graftline.build.optimize import optimize
from graftline.models.checkpoint import open_checkpoint
from graftline.passes import GRAFTS, Pipeline
from graftline.runtimes.machine import machine

UNET: Mapping[str, Any] = {
    "_class_name": "UNet2DConditionModel", "sample_size": 64, "cross_attention_dim": 1024,
    "attention_head_dim": [5, 10, 20, 20], "use_linear_projection": True,
}  # fmt: skip
VAE: Mapping[str, Any] = {
    "_class_name": "AutoencoderKL", "block_out_channels": [128, 256, 512, 512],
    "down_block_types": ["DownEncoderBlock2D"] * 4, "up_block_types": ["UpDecoderBlock2D"] * 4,
    "layers_per_block": 2, "sample_size": 768, "scaling_factor": 0.18215,
}  # fmt: skip
SCHEDULER: Mapping[str, Any] = {
    "_class_name": "EulerDiscreteScheduler", "timestep_spacing": "trailing", "beta_end": 0.012,
    "beta_schedule": "scaled_linear", "beta_start": 0.00085,
}  # fmt: skip
JOINED = "fold-guidance{scale=2.0} | collapse-loop{steps=%d} | join | lower-ort"
PIPELINES = {
    "fold-time": "fold-time | lower-ort",
    "one step, joined": JOINED % 1,
    "two steps, joined": JOINED % 2,
    "four steps, joined": JOINED % 4,
    "four steps, encoder reused": "encoder-reuse{steps=4,keys=0+2} | lower-ort",
}


def write(place: Path, random: bool) -> Path:
    """The pipeline's folder."""
    import diffusers
    from accelerate import init_empty_weights

    for name, config in (("unet", UNET), ("vae", VAE)):
        (place / name).mkdir(parents=True)
        (place / name / "config.json").write_text(json.dumps(config))
        with init_empty_weights():
            module = getattr(diffusers, config["_class_name"]).from_config(dict(config))
        shapes = {n: tuple(value.shape) for n, value in module.state_dict().items()}
        _weights(place / name / "diffusion_pytorch_model.safetensors", shapes, random)
    (place / "scheduler").mkdir()
    (place / "scheduler" / "scheduler_config.json").write_text(json.dumps(SCHEDULER))
    (place / "model_index.json").write_text("{}")
    return place


def _weights(file: Path, shapes: Mapping[str, tuple[int, ...]], random: bool) -> None:
    """fp16 tensors: zeros that take no room on the disk, or numbers that keep activations small."""
    rows: dict[str, Any] = {}
    end = 0
    for name, shape in shapes.items():
        begin, end = end, end + 2 * math.prod(shape)
        rows[name] = {"dtype": "F16", "shape": shape, "data_offsets": [begin, end]}
    text = json.dumps(rows).encode()
    draw = np.random.default_rng(0)
    with file.open("wb") as out:
        out.write(len(text).to_bytes(8, "little") + text)
        for shape in shapes.values() if random else ():
            fan = math.prod(shape[1:]) if len(shape) > 1 else 1
            values = draw.standard_normal(shape, dtype=np.float32) * (fan**-0.5)
            out.write((values if len(shape) > 1 else np.ones(shape)).astype(np.float16).tobytes())
        out.truncate(8 + len(text) + end)


def main() -> None:
    """Print a row for each step."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--proof", action="store_true")
    given = parser.parse_args()
    import diffusers
    import torch

    print(f"{machine()}; torch {torch.__version__}, diffusers {diffusers.__version__}")
    with tempfile.TemporaryDirectory(dir="/tmp") as name:
        began = time.perf_counter()
        place = write(Path(name) / "pipeline", given.proof)
        print(f"files written in {time.perf_counter() - began:.0f} s")
        began, computed = time.perf_counter(), time.process_time()

        def say(line: str) -> None:
            used = resource.getrusage(resource.RUSAGE_SELF)
            seconds = time.perf_counter() - began, time.process_time() - computed
            told = f"{seconds[0]:6.1f} s, {seconds[1]:6.1f} s of CPU"
            print(f"{told}, {used.ru_maxrss / (1 << 20):5.2f} GB  {line}", flush=True)

        if given.proof:
            passes = JOINED.removesuffix(" | lower-ort") % 1
            made = optimize(place, Path(name) / "out.graft", passes=passes, watch=say)
            for row in made.manifest.laws:
                if row.law in ("checkpoint", "whole", "neutral"):
                    say(f"law {row.law} of {row.graft}: {row.status} {row.text}")
            return
        host = open_checkpoint(place).host(watch=say)
        assert host.spec is not None
        host = composed(host, host.spec(), Pipeline.parse(JOINED % 1, GRAFTS), say)
        say(f"exported: {len(host.model.graph)} nodes, {host.facts.parameters:,} numbers")
        compiler = Compiler(host.model, lambda line: None)
        for what, passes in PIPELINES.items():
            made = compiler.compile(f"canonicalize-one-pass | {passes}")
            say(f"{what}: {len(made.lowered.graph)} nodes")


if __name__ == "__main__":
    sys.exit(main())
