"""How `bench` compares recipes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from graftline.commands.options.answering import Raw
from graftline.commands.options.questions import PerGroup

Figures = Annotated[Path | None, typer.Option(help="Write the results to this JSON file.")]


@dataclass(frozen=True)
class Compared:
    """Recipes, and the questions that each answers."""

    recipes: Annotated[
        str, typer.Option(help="Recipes, separated by commas; plain is always included.")
    ] = "plain,prompt-lookup,token-recycling"
    max_new_tokens: Annotated[int, typer.Option(help="Maximum tokens per answer.")] = 128
    per_group: PerGroup = None
    turns: Annotated[int, typer.Option(min=1, help="Maximum turns per conversation.")] = 1
    repeat: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Runs per prompt, or of a bundle that runs once; times are medians. Default: 1 "
            "per prompt, else 5.",
        ),
    ] = None


@dataclass(frozen=True)
class Decoding:
    """How all recipes decode."""

    ignore_eos: Annotated[
        bool, typer.Option("--ignore-eos", help="Always generate --max-new-tokens tokens.")
    ] = False
    raw: Raw = False
    temperature: Annotated[float, typer.Option(help="Sampling temperature; 0 is greedy.")] = 0.0
    seed: Annotated[
        int,
        typer.Option(help="Random seed, for --temperature above 0 and for inputs that are drawn."),
    ] = 0


@dataclass(frozen=True)
class Method:
    """How recipes take turns, and what their drafts are."""

    step: Annotated[
        str,
        typer.Option(help="Step of all recipes but plain: host, or fused where all support it."),
    ] = "host"
    interleaved: Annotated[
        bool,
        typer.Option(
            "--interleaved",
            help="Run all recipes at once, one pass of each in turn, so that a slowdown of the "
            "machine affects all of them alike.",
        ),
    ] = False
    oracle: Annotated[
        bool,
        typer.Option("--oracle", help="Show acceptance beside the bound of any lossless rule."),
    ] = False
    force_acceptance: Annotated[
        str | None,
        typer.Option(
            metavar="RATE,RATE,...",
            help="Time recipes with a draft engine or head as if its drafts were that good: the "
            "chance that a drafted token is accepted at depth 1, 2, ... where those before it "
            "are. All calls are made; drafted tokens are replaced by the target's own, or by "
            "others.",
        ),
    ] = None
