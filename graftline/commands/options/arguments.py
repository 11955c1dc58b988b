"""What commands work on."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Checkpoint = Annotated[
    str,
    typer.Argument(
        metavar="CHECKPOINT",
        help="A Hugging Face folder, a .gguf file, an exported .onnx or a torch.export .pt2.",
    ),
]
CheckpointOrBundle = Annotated[
    str,
    typer.Argument(
        metavar="CHECKPOINT|BUNDLE",
        help="The host: a Hugging Face folder or a .gguf file, or a bundle built from one, which "
        "then answers the prompts.",
    ),
]
BundleFolder = Annotated[Path, typer.Argument(metavar="BUNDLE", help="A bundle folder.")]
BundleOrGraph = Annotated[
    Path, typer.Argument(metavar="BUNDLE|GRAPH", help="A bundle folder, or an .onnx file.")
]
Graph = Annotated[Path, typer.Argument(metavar="GRAPH", help="An .onnx file.")]
Prompt = Annotated[
    str | None, typer.Argument(metavar="[PROMPT]", help="The prompt; - reads it from stdin.")
]
