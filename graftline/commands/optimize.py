"""`graftline optimize`: a checkpoint in, a bundle out."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from graftline.commands import screen
from graftline.errors import GraftlineError, nearest


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
        str, typer.Option(help="What the bundle is for; `graftline recipes` lists them.")
    ] = "prompt-lookup",
    passes: Annotated[
        str | None,
        typer.Option(
            metavar="TEXT",
            help='Grafts in place of the recipe\'s: "kv-cache | tap{layers=3}". '
            "`graftline passes` lists them.",
        ),
    ] = None,
    target: Annotated[str, typer.Option(help="The backend to build for.")] = "ort-cpu",
    dtype: Annotated[str, typer.Option(help="fp32, int8 or int4 weights.")] = "fp32",
    weights: Annotated[
        str,
        typer.Option(help="link: share the checkpoint's file where possible; copy: stand alone."),
    ] = "link",
    quantizer: Annotated[
        str | None, typer.Option(help="Algorithm for --dtype int8 or int4.")
    ] = None,
    full_export: Annotated[
        bool, typer.Option("--full-export", help="Export every layer instead of one of each kind.")
    ] = False,
    quiet: Annotated[bool, typer.Option("-q", "--quiet", help="No progress.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print the manifest as JSON.")] = False,
) -> None:
    """Export a checkpoint, graft and compile it, prove it, and write a bundle.

    Nothing is written unless everything held: an error or Ctrl-C leaves OUT as it was.

    Examples:

    `graftline optimize ./SmolLM2-135M-Instruct -o smol.graft`

    `graftline optimize model.gguf -o fast.graft --recipe token-recycling --dtype int4`

    `graftline optimize model.onnx -o taps.graft --passes "kv-cache | tap{layers=3}" -q --json`
    """
    mode = _mode(weights)
    with screen.steps(quiet) as watch:
        from graftline import compile

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
            watch=watch,
        )
    if json:
        screen.write_json(_jsonable(bundle.manifest.to_json()))
        return
    total = sum(entry.size for entry in bundle.manifest.files.values())
    laws = f"{len(bundle.manifest.laws)} laws hold"
    print(f"{out}: {bundle.manifest.facts.layers} blocks, {screen.size(total)}, {laws}")
    print(f'try: graftline run {out} "Explain speculative decoding."')


def _mode(weights: str) -> Literal["link", "copy"]:
    if weights == "link" or weights == "copy":
        return weights
    raise GraftlineError(f"--weights {weights}: no such way{nearest(weights, ('link', 'copy'))}")


def _jsonable(text: str) -> object:
    from json import loads

    return loads(text)
