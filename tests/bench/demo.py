"""Plain against speculative generation of bundles, side by side: demo.py BUNDLE ..."""

from __future__ import annotations

import sys
from typing import Any

from rich.columns import Columns
from rich.console import Console
from rich.panel import Panel
from rich.text import Text

import graftline

ARTICLE = (
    "The Apollo 11 mission landed the first humans on the Moon on July 20, 1969. Commander Neil "
    "Armstrong and lunar module pilot Buzz Aldrin landed the module Eagle, while command module "
    "pilot Michael Collins stayed in lunar orbit. Armstrong was the first to step onto the "
    "surface, six hours after landing; Aldrin joined him 19 minutes later. They collected 21.5 kg "
    "of lunar material to bring back to Earth and returned after eight days in space."
)
PROMPTS = (
    "Explain speculative decoding to a ten-year-old.",
    f"Summarize this article in three sentences.\n\n{ARTICLE}",
    f"List every person this article names, with what it says about each.\n\n{ARTICLE}",
)


def main(bundle: str) -> int:
    """Print both answers to every prompt; 2 when a token differs that must not."""
    console = Console()
    console.rule(bundle)
    with console.status("opening the bundle, measuring what a step costs here"):
        engine = graftline.load(bundle)
    recipe = engine.recipe.name
    engine.generate(PROMPTS[0], max_new_tokens=8, recipe="plain")
    spent = {"plain": 0.0, recipe: 0.0}
    made = {"plain": 0, recipe: 0}
    differ, vouched = 0, True
    for prompt in PROMPTS:
        answers: dict[str, Any] = {}
        for name in spent:
            with console.status(f"{name}: {prompt[:60]}"):
                answers[name] = engine.generate(prompt, max_new_tokens=128, recipe=name)
            stats = answers[name].stats
            spent[name] += stats.seconds - stats.time_to_first_token
            made[name] += len(answers[name].tokens) - 1
            vouched = vouched and stats.lossless
        differ += answers["plain"].tokens != answers[recipe].tokens
        console.print(Text(f"\n> {prompt.splitlines()[0]}", style="bold"))
        width = max(40, console.width // 2 - 2)
        console.print(Columns([_panel(name, a, width) for name, a in answers.items()]))
    speeds = {name: made[name] / spent[name] for name in spent}
    for name, speed in speeds.items():
        console.print(f"{name:>16}  {speed:6.1f} tokens/s  {speed / speeds['plain']:.2f}x")
    same = "token-identical" if not differ else f"{differ} of {len(PROMPTS)} differ"
    console.print(f"{'':>16}  {same} on {len(PROMPTS)} prompts")
    return 2 if differ and vouched else 0


def _panel(name: str, result: Any, width: int) -> Panel:
    stats = result.stats
    title = f"{name}: {stats.tokens_per_second:.1f} tokens/s, MAT {stats.mat:.2f}"
    return Panel(Text(result.text.strip()), title=title, width=width)


if __name__ == "__main__":
    sys.exit(max(main(bundle) for bundle in sys.argv[1:]))
