"""`graftline optimize`: a checkpoint in, a bundle out."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from graftline.commands import libraries, screen
from graftline.commands.options import Quiet
from graftline.errors import GraftlineError, nearest
from graftline.law import summary


def optimize(
    checkpoint: Annotated[
        str,
        typer.Argument(
            metavar="CHECKPOINT",
            help="A Hugging Face folder, a .gguf file, an exported .onnx or a torch.export .pt2.",
        ),
    ],
    out: Annotated[Path, typer.Option("-o", "--out", help="The bundle folder to write.")],
    recipe: Annotated[
        str | None,
        typer.Option(
            help="Recipe to build for; `graftline recipes` lists them. A decoder's default: "
            "prompt-lookup."
        ),
    ] = None,
    passes: Annotated[
        str | None,
        typer.Option(
            metavar="TEXT",
            help='Passes in place of the recipe\'s: "kv-cache | tap{layers=3}". '
            "`graftline passes` lists them.",
        ),
    ] = None,
    target: Annotated[
        str,
        typer.Option(
            help="ort-cpu, ort-cuda, or TensorRT for the GPUs named: trt-rtx:sm89+sm120, trt:sm90."
        ),
    ] = "ort-cpu",
    dtype: Annotated[
        str,
        typer.Option(
            help="ort-cpu: fp32, or int8 or int4 weights; ort-cuda: also fp16 or bf16; TensorRT: "
            "fp32, fp16 or bf16."
        ),
    ] = "fp32",
    weights: Annotated[
        str,
        typer.Option(
            help="link: share the checkpoint's files where possible; copy: self-contained, with a "
            "copy of the tensors that are needed."
        ),
    ] = "link",
    quantizer: Annotated[
        str | None, typer.Option(help="Quantization algorithm for --dtype int8 or int4.")
    ] = None,
    draft: Annotated[
        str | None,
        typer.Option(
            metavar="DRAFT",
            help="Add a draft engine: int4 or int8 (the same weights, quantized), or a smaller "
            "checkpoint with the same vocabulary: PATH or PATH:int4.",
        ),
    ] = None,
    draft_depths: Annotated[
        str,
        typer.Option(
            metavar="BLOCKS",
            help="Add the draft's first blocks as smaller drafts over the same weights: 12,20.",
        ),
    ] = "",
    engine: Annotated[
        str,
        typer.Option(
            metavar="OPTIONS",
            help="TensorRT options: rows=1+64 (tree nodes of the decode profiles), chunk=512, "
            "batch=1, capacity=2048, version-compatible, refittable, strip-weights.",
        ),
    ] = "",
    step: Annotated[
        str,
        typer.Option(
            help="host: draft and verify between engine calls; fused: add a second graph over the "
            "same weights that does both within the call."
        ),
    ] = "host",
    full_export: Annotated[
        bool, typer.Option("--full-export", help="Export every layer instead of one of each kind.")
    ] = False,
    quiet: Quiet = False,
    json: Annotated[bool, typer.Option("--json", help="Print the manifest as JSON.")] = False,
) -> None:
    """Export a checkpoint, graft and compile it, prove it, and write a bundle.

    The bundle is written only if every check passes: an error or Ctrl-C leaves OUT as it was.

    Examples:

    `graftline optimize ./SmolLM2-135M-Instruct -o smol.graft`

    `graftline optimize model.gguf -o fast.graft --recipe token-recycling --dtype int4`

    `graftline optimize ./SmolLM2 -o smol.graft --recipe cascade-drafting --draft int8`

    `graftline optimize ./SmolLM2 -o sorted.graft --recipe s2d --draft int8 --draft-depths 15,24`

    `graftline optimize ./TARGET -o pard.graft --recipe pard --draft ./PARD-DRAFT:int8`

    `graftline optimize ./SmolLM2-135M-Instruct -o rtx.graft --target trt-rtx:sm89 --dtype fp16`

    `graftline optimize ./SmolLM2 -o fused.graft --recipe token-recycling --step fused`

    `graftline optimize model.onnx -o taps.graft --passes "kv-cache | tap{layers=3}" -q --json`
    """
    mode = _mode(weights)
    if not checkpoint or draft == "":
        raise GraftlineError(f"{'--draft' if checkpoint else 'CHECKPOINT'} is empty; give a path")
    libraries.silence_onnxruntime()
    with screen.steps(quiet) as watch:
        from graftline.build import optimize as compile
        from graftline.draft import parse_depths

        bundle = compile.optimize(
            checkpoint,
            out,
            recipe=recipe,
            passes=passes,
            target=target,
            dtype=dtype,
            weights=mode,
            full_export=full_export,
            quantizer=quantizer,
            draft=draft,
            draft_depths=parse_depths(draft_depths) if draft_depths else (),
            engine=engine,
            step=step,
            watch=watch,
        )
    if json:
        screen.write_json(_jsonable(bundle.manifest.to_json()))
        return
    laws = f"laws: {summary(bundle.manifest.laws)}"
    size = screen.sizes(*bundle.sizes())
    print(f"{out}: {bundle.manifest.facts.told()}, {size}; {laws}")
    if not bundle.manifest.recipe:
        print(f"see: graftline inspect {out}")
        return
    if "engine" in bundle.manifest.extra:
        print(f"its engine runs on {bundle.manifest.target}; see: graftline inspect {out}")
        return
    print(f'try: graftline run {out} "Explain speculative decoding."')


def _mode(weights: str) -> Literal["link", "copy"]:
    if weights == "link" or weights == "copy":
        return weights
    raise GraftlineError(f"--weights {weights}: unknown mode{nearest(weights, ('link', 'copy'))}")


def _jsonable(text: str) -> object:
    from json import loads

    return loads(text)
