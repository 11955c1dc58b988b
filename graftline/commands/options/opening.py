"""How a bundle is opened."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

Recipe = Annotated[
    str | None, typer.Option(help="Recipe to decode with, in place of the bundle's own.")
]
RunStep = Annotated[
    str | None, typer.Option(help="host, or fused if the bundle was built with --step fused.")
]
Exact = Annotated[
    bool,
    typer.Option("--exact", help="One kernel family for every step: exact at int8 and int4 too."),
]
Threads = Annotated[int | None, typer.Option(help="CPU threads; default: one per processor.")]
Capacity = Annotated[
    int | None, typer.Option(min=1, help="Maximum tokens of prompt and answer together.")
]
Corpus = Annotated[
    Path | None,
    typer.Option(help="File or folder of texts, for recipes that retrieve from a corpus."),
]


@dataclass(frozen=True)
class Resources:
    """What an engine may use."""

    threads: Threads = None
    capacity: Capacity = None
    corpus: Corpus = None
