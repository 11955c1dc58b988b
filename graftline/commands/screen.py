"""What the commands show: results on stdout, progress on stderr, JSON where a program may read."""

from __future__ import annotations

import codecs
import io
import json
import sys
import time
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from graftline.files import told_size

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from graftline.bundle.writer import Watch

DETAIL = 2.0
"""Seconds from which a step's time is worth showing."""
PLAIN = {"→": "->", "…": "...", "·": "*", "–": "-", "×": "x", "’": "'"}
"""What is written where the terminal's encoding lacks a character; "?" for any other."""


def accept_any_text() -> None:
    """Let stdout and stderr take every text, whatever their encoding."""
    codecs.register_error("graftline", _plainer)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="graftline")


def _plainer(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    lacking = error.object[error.start : error.end]
    return "".join(PLAIN.get(c, "?") for c in lacking), error.end


def console(error: bool = False) -> Console:
    """The terminal; where there is none, lines are as wide as they need to be."""
    from rich.console import Console

    stream = sys.stderr if error else sys.stdout
    width = None if stream.isatty() else 200
    return Console(stderr=error, width=width, highlight=False, soft_wrap=not stream.isatty())


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> Table:
    """A table; columns whose name ends in `#` hold numbers."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    made = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD)
    for column in columns:
        number = column.endswith("#")
        made.add_column(column.rstrip("#"), justify="right" if number else "left", overflow="fold")
    for row in rows:
        made.add_row(*(Text(str(cell)) for cell in row))
    return made


def write_json(value: Any) -> None:
    """Print `value` for a program to read; where stdout is not UTF-8, in ASCII."""
    unicode = (sys.stdout.encoding or "").lower().replace("-", "") == "utf8"
    sys.stdout.write(json.dumps(value, indent=1, ensure_ascii=not unicode) + "\n")


@contextmanager
def steps(quiet: bool = False) -> Generator[Watch]:
    """Show progress: a spinner with the time on a terminal, one line per step elsewhere.

    Yields the callback that is told each step in words as it begins.
    """
    screen, began = console(error=True), time.perf_counter()
    if quiet:
        yield lambda line: None  # pyright: ignore[reportUnknownLambdaType]
        return
    if not screen.is_terminal:
        yield lambda line: _line(began, line)
        return
    from rich.markup import escape

    current: list[tuple[str, float]] = []

    def close() -> None:
        for line, start in current:
            spent = time.perf_counter() - start
            took = f"  [dim]{spent:.1f} s[/]" if spent >= DETAIL else ""
            screen.print(f"[green]·[/] {escape(line)}{took}")
        current.clear()

    with screen.status("starting") as status:

        def tell(line: str) -> None:
            close()
            current.append((line, time.perf_counter()))
            status.update(escape(line))

        yield tell
        close()


def _line(began: float, line: str) -> None:
    sys.stderr.write(f"{time.perf_counter() - began:6.1f} s  {line}\n")
    sys.stderr.flush()


def sizes(own: int, shared: int) -> str:
    """What a bundle adds to a disk, and what it shares with the checkpoint there."""
    more = f", and {told_size(shared)} that are the checkpoint's own" if shared else ""
    return told_size(own) + more
