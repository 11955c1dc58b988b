"""Prompts that `bench` and `tune` read."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

QUESTIONS = 'JSON Lines file of questions: Spec-Bench fields, or {"prompt": …}.'
Prompts = Annotated[Path | None, typer.Option(help=f"{QUESTIONS} Decoders of text need one.")]
TunePrompts = Annotated[Path | None, typer.Option(help=QUESTIONS)]
PerGroup = Annotated[
    int | None, typer.Option(min=1, help="Questions per group, spread evenly; default: all.")
]
