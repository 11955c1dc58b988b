"""What hosts that run once take and make."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

Conditions = Annotated[
    list[str] | None,
    typer.Option(metavar="NAME=FILE.npy", help="What the decoder is conditioned on; repeatable."),
]


@dataclass(frozen=True)
class Decoded:
    """What `run` decodes, and into which file."""

    latents: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.npy",
            help="Decode these latents with a bundle that makes waveforms or images, score the "
            "classes of these features' places, recognise this signal with one that writes texts, "
            "or fill this canvas.",
        ),
    ] = None
    condition: Conditions = None
    out: Annotated[
        Path | None,
        typer.Option("-o", "--out", metavar="FILE", help="The .npy, .wav or .png to write."),
    ] = None
    steps: Annotated[
        int | None,
        typer.Option(
            "--steps",
            min=1,
            help="Steps of a sampling loop, of those that the bundle was built with, or of "
            "filling a canvas.",
        ),
    ] = None
    guidance: Annotated[
        float | None,
        typer.Option(
            metavar="SCALE",
            help="Of filling a canvas: how far its scores are driven from those without "
            "conditions, which --condition unconditional_NAME=FILE.npy stand for. 1: not at all.",
        ),
    ] = None
    rises: Annotated[
        bool, typer.Option("--rises", help="The guidance grows over the steps to SCALE.")
    ] = False
    sample_rate: Annotated[
        int | None, typer.Option(min=1, help="Samples per second of a .wav; no graph says it.")
    ] = None
    value_range: Annotated[
        str,
        typer.Option(
            "--range",
            metavar="LOW,HIGH",
            help="Numbers that are black and white in a .png, and the range of a .wav.",
        ),
    ] = "-1,1"


@dataclass(frozen=True)
class Measured:
    """What `bench` measures of a bundle that runs once."""

    latents: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.npy",
            help="Input of a bundle that runs once: latents, noise or a signal. Default: drawn.",
        ),
    ] = None
    condition: Conditions = None
    length: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Places along each free axis of an input that is drawn. Default: 64, or 4 "
            "windows.",
        ),
    ] = None
    value_range: Annotated[
        str | None,
        typer.Option(
            "--range",
            metavar="LOW,HIGH",
            help="Numbers that PSNR is taken between, others clipped, as -1,1 for images. "
            "Default: the lowest and the highest of the most steps' output.",
        ),
    ] = None
