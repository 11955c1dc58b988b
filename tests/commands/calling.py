"""The command line called within this process."""

from __future__ import annotations

from pathlib import Path

from typer.testing import CliRunner, Result

from graftline.commands.cli import app


def call(*args: str | Path, stdin: str = "") -> Result:
    return CliRunner().invoke(app, [str(a) for a in args], input=stdin)


def refused(*args: str | Path) -> str:
    """The one line a refusal prints."""
    result = call(*args)
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    assert result.stderr.count("\n") == 1, result.stderr
    return result.stderr
