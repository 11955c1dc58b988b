"""What `inspect` and `diff` show, and where `pack` and `split` write."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

ShownStage = Annotated[
    str | None, typer.Option(help="Graph of the bundle to show; default: the target's.")
]
Picture = Annotated[bool, typer.Option("--graph", help="Show the graph, one line per block.")]
Nodes = Annotated[
    str | None,
    typer.Option(metavar="LAYER", help="Show the nodes of a block: 0, 1, …, embedding, head."),
]
ShownPass = Annotated[
    str | None,
    typer.Option("--pass", metavar="PASS", help="Show what a pass made, where, and its laws."),
]
Page = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help="Write a page that draws the graphs, pass by pass, with laws, costs and weights: one "
        "file, without network. With --stage: the way to that stage alone.",
    ),
]
ModelExplorer = Annotated[
    Path | None,
    typer.Option(metavar="DIR", help="Write graphs, passes and costs for Google's Model Explorer."),
]

Before = Annotated[
    Path, typer.Argument(metavar="BEFORE", help="A bundle folder, or an .onnx file.")
]
After = Annotated[Path, typer.Argument(metavar="AFTER", help="Another of the same kind.")]
ComparedStage = Annotated[
    str | None, typer.Option(help="Graph of the bundles to compare; default: every one.")
]
DiffPage = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="Also write a page that draws the difference: one file."),
]
Markdown = Annotated[bool, typer.Option("--markdown", help="Print Markdown, for a pull request.")]

PackedOut = Annotated[
    Path,
    typer.Option("-o", "--out", metavar="DIR|FILE.tar", help="The folder or archive to write."),
]
SplitFolder = Annotated[
    Path, typer.Option("-o", "--out", metavar="DIR", help="The folder of both files.")
]
