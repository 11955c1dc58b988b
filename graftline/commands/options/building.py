"""What `optimize` builds."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

NewBundle = Annotated[Path, typer.Option("-o", "--out", help="The bundle folder to write.")]
BuildRecipe = Annotated[
    str | None,
    typer.Option(
        help="Recipe to build for; `graftline recipes` lists them. A decoder's default: "
        "prompt-lookup."
    ),
]
Passes = Annotated[
    str | None,
    typer.Option(
        metavar="TEXT",
        help='Passes in place of the recipe\'s: "kv-cache | tap{layers=3}". '
        "`graftline passes` lists them.",
    ),
]
DraftHead = Annotated[
    str | None,
    typer.Option(
        metavar="PATH",
        help="Add a draft head that was published for this very model: the folder or the file (.pt "
        "or .safetensors) of Medusa, Hydra, EAGLE, P-EAGLE, DFlash, JetSpec or DSpark heads; in "
        "another precision: PATH:int8. The recipe follows from it.",
    ),
]
AnswerPrefix = Annotated[
    str | None,
    typer.Option(
        metavar="TEXT",
        help="How every answer begins, read with the prompt in one go: latent tokens that the "
        "model was taught to think at.",
    ),
]
SpecFile = Annotated[
    Path | None,
    typer.Option(
        "--spec",
        metavar="FILE",
        help="TOML file that says of a denoiser what its graph cannot: its scheduler, what it "
        "predicts, its decoder, and which input is which where types do not tell.",
    ),
]


@dataclass(frozen=True)
class Backend:
    """What the engine runs on, and in which precision."""

    target: Annotated[
        str,
        typer.Option(
            help="ort-cpu, ort-cuda, or TensorRT for the GPUs named: trt-rtx:sm89+sm120, trt:sm90."
        ),
    ] = "ort-cpu"
    dtype: Annotated[
        str,
        typer.Option(
            help="ort-cpu: fp32, or int8 or int4 weights; ort-cuda: also fp16 or bf16; TensorRT: "
            "fp32, fp16 or bf16."
        ),
    ] = "fp32"
    weights: Annotated[
        str,
        typer.Option(
            help="link: share the checkpoint's files where possible; copy: self-contained, with a "
            "copy of the tensors that are needed."
        ),
    ] = "link"
    quantizer: Annotated[
        str | None, typer.Option(help="Quantization algorithm for --dtype int8 or int4.")
    ] = None


@dataclass(frozen=True)
class Drafts:
    """What drafts for the target, but for heads, or is left out of it."""

    draft: Annotated[
        str | None,
        typer.Option(
            metavar="DRAFT",
            help="Add a draft engine: int4 or int8 (the same weights, quantized), or a smaller "
            "checkpoint with the same vocabulary: PATH or PATH:int4.",
        ),
    ] = None
    draft_depths: Annotated[
        str,
        typer.Option(
            metavar="BLOCKS",
            help="Add the draft's first blocks as smaller drafts over the same weights: 12,20.",
        ),
    ] = ""
    skip: Annotated[
        str | None,
        typer.Option(
            metavar="BLOCKS",
            help="Add a route, the target without these blocks over the same weights and caches, "
            "which drafts for it: 10-20, or attention=8-15+20,mlp=12 for parts of blocks; with "
            "--draft int8 it is in that precision. Default for recipes with a route: middle, "
            "which is every fourth block of the middle half.",
        ),
    ] = None
    exit: Annotated[
        str | None,
        typer.Option(
            metavar="BLOCKS",
            help="Let the target draft after its first blocks, so many of them, and verify with "
            "the others alone, over the same weights and caches: 8, or 6,12,18 for recipes that "
            "choose.",
        ),
    ] = None
    speedup: Annotated[
        float | None,
        typer.Option(
            metavar="TIMES",
            help="How many times as fast unified-layer-skip or skipdecode decodes, by skipping "
            "blocks, or ffn-skip, by skipping MLPs: lossy. Default: what the recipe says.",
        ),
    ] = None


@dataclass(frozen=True)
class SamplingLoop:
    """A denoiser's sampling loop."""

    spec: SpecFile = None
    steps: Annotated[
        str,
        typer.Option(
            "--steps",
            metavar="NUMBERS",
            help="Steps of a denoiser's sampling loop in the graph: 1,2,4 builds three over the "
            "same weights, the first as the engine. Default: as many as the spec says.",
        ),
    ] = ""


@dataclass(frozen=True)
class Build:
    """How the graphs are exported and compiled."""

    engine: Annotated[
        str,
        typer.Option(
            metavar="OPTIONS",
            help="TensorRT options: rows=1+64 (tree nodes of the decode profiles), chunk=512, "
            "batch=1, capacity=2048, version-compatible, refittable, strip-weights. Of hosts that "
            "run once: batch=1, and size.H=64 or size.H=32..128 for dimensions that inputs leave "
            "open.",
        ),
    ] = ""
    step: Annotated[
        str,
        typer.Option(
            help="host: draft and verify between engine calls; fused: add a second graph over the "
            "same weights that does both within the call."
        ),
    ] = "host"
    full_export: Annotated[
        bool, typer.Option("--full-export", help="Export every layer instead of one of each kind.")
    ] = False
