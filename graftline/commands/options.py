"""Options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Threads = Annotated[int | None, typer.Option(help="CPU threads; default: one per processor.")]
Capacity = Annotated[
    int | None, typer.Option(min=1, help="Maximum tokens of prompt and answer together.")
]
Corpus = Annotated[
    Path | None,
    typer.Option(help="File or folder of texts, for recipes that retrieve from a corpus."),
]
Prompts = Annotated[
    Path,
    typer.Option(help='JSON Lines file of questions: Spec-Bench fields, or {"prompt": …}.'),
]
PerGroup = Annotated[
    int | None, typer.Option(min=1, help="Questions per group, spread evenly; default: all.")
]
Quiet = Annotated[bool, typer.Option("-q", "--quiet", help="Do not show progress.")]
Json = Annotated[bool, typer.Option("--json", help="Print machine-readable JSON.")]
