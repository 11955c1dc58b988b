"""Options that several commands share."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer


def _threads(count: int | None) -> int | None:
    """Each thread spins while a step runs, so more than there are processors would never end."""
    most = os.cpu_count() or 1
    if count is not None and not 1 <= count <= most:
        raise typer.BadParameter(f"{count} threads; this machine has {most} processors")
    return count


Threads = Annotated[
    int | None,
    typer.Option(callback=_threads, help="CPU threads; default: one per processor."),
]
Capacity = Annotated[
    int | None, typer.Option(min=1, help="Most tokens of prompt and answer together.")
]
Corpus = Annotated[
    Path | None,
    typer.Option(help="Texts that some recipes retrieve from: a file or a folder."),
]
Prompts = Annotated[
    Path,
    typer.Option(help='Questions, one JSON a line: Spec-Bench\'s fields, or {"prompt": …}.'),
]
PerGroup = Annotated[
    int | None, typer.Option(min=1, help="Questions of each group, spread evenly; default: all.")
]
Quiet = Annotated[bool, typer.Option("-q", "--quiet", help="Show no progress.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON, for a program to read.")]
