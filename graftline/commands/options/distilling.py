"""What `distill` is given."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from graftline.commands.options.building import SpecFile
from graftline.commands.options.once import Conditions
from graftline.commands.options.opening import Threads
from graftline.commands.options.training import (
    LearningRate,
    Minutes,
    Optimizer,
    TrainSeed,
    TrainSteps,
)


@dataclass(frozen=True)
class DistillOptions:
    """A student, its teacher, and its training."""

    kind: Annotated[str, typer.Argument(metavar="one-step", help="What the student becomes.")]
    checkpoint: Annotated[
        str,
        typer.Argument(
            metavar="CHECKPOINT|BUNDLE",
            help="The teacher: a denoiser's .onnx file with --spec, a folder of diffusers, or a "
            "bundle made with collapse-loop.",
        ),
    ]
    out: Annotated[Path, typer.Option("-o", "--out", help="The folder of the student to write.")]
    spec: SpecFile = None
    condition: Conditions = None
    size: Annotated[
        str | None,
        typer.Option(
            metavar="HxW", help="Height and width of a sample, where the graph takes any."
        ),
    ] = None
    minutes: Minutes = None
    steps: TrainSteps = None
    seed: TrainSeed = 0
    pairs: Annotated[
        int, typer.Option(min=2, help="Samples that the teacher draws, for the conditions in turn.")
    ] = 2048
    batch: Annotated[int, typer.Option(min=1, help="Samples that a step of training learns.")] = 32
    perceptual: Annotated[
        float,
        typer.Option(
            help="Weight of 1 - SSIM beside the squared error over the samples' variance."
        ),
    ] = 0.1
    learning_rate: LearningRate = 1e-3
    optimizer: Optimizer = "adamw"
    threads: Threads = None
