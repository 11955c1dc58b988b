"""What commands print."""

from __future__ import annotations

from typing import Annotated

import typer

Quiet = Annotated[bool, typer.Option("-q", "--quiet", help="Do not show progress.")]
Json = Annotated[bool, typer.Option("--json", help="Print machine-readable JSON.")]
JsonManifest = Annotated[bool, typer.Option("--json", help="Print the manifest as JSON.")]
JsonResult = Annotated[
    bool, typer.Option("--json", help="Print JSON at the end: text, tokens and statistics.")
]
