"""`graftline diff`: what differs between the graphs of two bundles, or between two graphs."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import typer

from graftline.commands import libraries, screen
from graftline.commands.options.printing import Json
from graftline.commands.options.showing import After, Before, ComparedStage, DiffPage, Markdown
from graftline.errors import GraftlineError

if TYPE_CHECKING:
    from graftline.inspection.diff import Diff

DIFFERENT = 1
COLOURS = {"+": "green", "-": "red", "~": "yellow", "": "bold"}


def diff(
    before: Before,
    after: After,
    stage: ComparedStage = None,
    html: DiffPage = None,
    markdown: Markdown = False,
    json: Json = False,
) -> None:
    """Compare graphs by what they compute, not by names: exit code 1 where they differ.

    Of two bundles every stage is compared, or the one given; nodes that were only renamed or
    reordered are the same.

    Examples:

    `graftline diff smol-v1.graft smol-v2.graft`

    `graftline diff before.onnx after.onnx --markdown >> comment.md`

    `graftline diff smol.graft/canonical.onnx smol.graft/ort-cpu.onnx --html lowering.html`
    """
    from graftline.inspection.opening import graph_pairs

    if markdown and json:
        raise GraftlineError("--markdown and --json are both for stdout; give one of them")
    libraries.silence_onnxruntime()
    pairs = graph_pairs(before, after, stage)
    diffs: dict[str, Diff] = {}
    with screen.steps(quiet=not sys.stderr.isatty()) as watch:
        for name, pair in pairs.shared.items():
            watch(f"comparing {name}")
            diffs[name] = pair.diff()
    if html is not None:
        from graftline.inspection.graph_page import diff_page
        from graftline.inspection.page import write_page

        write_page(diff_page(before, after, diffs, pairs.alone), html)
    if json:
        screen.write_json(_rows(diffs, pairs.alone))
    elif markdown:
        _print_markdown(diffs, pairs.alone)
    else:
        _print(diffs, pairs.alone)
    if pairs.alone or any(not one.equal for one in diffs.values()):
        raise typer.Exit(DIFFERENT)


def _print(diffs: dict[str, Diff], alone: dict[str, str]) -> None:
    from rich.text import Text

    from graftline.inspection.diff_text import text_lines

    shown = screen.console()
    for name, one in diffs.items():
        shown.print(Text(f"{name}: {one.told}", style="bold"))
        for sign, line in text_lines(one):
            told = f"  {sign} {line}" if sign else f"\n  {line}"
            shown.print(Text(told, style=COLOURS[sign]))
    for name, told in alone.items():
        shown.print(Text(f"{name}: {told}", style="bold"))


def _print_markdown(diffs: dict[str, Diff], alone: dict[str, str]) -> None:
    from graftline.inspection.diff_text import markdown

    for name, one in diffs.items():
        print(markdown(name, one))
    for name, told in alone.items():
        print(f"**{name}**: {told}\n")


def _rows(diffs: dict[str, Diff], alone: dict[str, str]) -> dict[str, Any]:
    from dataclasses import asdict

    from graftline.inspection.diff_text import parts

    return {
        "equal": not alone and all(one.equal for one in diffs.values()),
        "graphs": {
            name: {"equal": one.equal, "told": one.told, "parts": [asdict(p) for p in parts(one)]}
            for name, one in diffs.items()
        },
        "alone": alone,
    }
