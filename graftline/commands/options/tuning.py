"""What `tune` measures."""

from __future__ import annotations

from typing import Annotated

import typer

Precision = Annotated[
    bool,
    typer.Option(
        "--precision", help="Measure speed and perplexity of every precision; keep the best."
    ),
]
MostLoss = Annotated[
    float,
    typer.Option(
        min=0,
        metavar="PERCENT",
        help="With --precision: how far perplexity may rise above that of fp32, at most.",
    ),
]
TuneRecipes = Annotated[
    str,
    typer.Option(
        help="Recipes to tune, separated by commas; default: token-recycling, suffix and "
        "prompt-lookup, and draft-model if the bundle has a draft engine. self-skip, alone, "
        "searches the blocks that its route skips, and makes the bundle again."
    ),
]
TuneTokens = Annotated[int, typer.Option(min=2, help="Maximum tokens per answer.")]
