"""Options that belong together, as one dataclass in a command's signature."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import pytest
import typer
from typer.testing import CliRunner

from graftline.commands.cli import app
from graftline.commands.options.flat import flat


@dataclass(frozen=True)
class Place:
    at: Annotated[int, typer.Option(help="Where.")] = 3


@dataclass(frozen=True)
class Thing:
    file: Annotated[Path, typer.Argument(help="Which.")]
    place: Place
    words: Annotated[list[str] | None, typer.Option("--word", "-w", help="What.")] = None


def write(ctx: typer.Context, *, thing: Thing, loud: bool = False) -> None:
    """Write a thing."""
    print(sorted(ctx.params), thing, loud)


def program(command: object = write) -> typer.Typer:
    made = typer.Typer()
    made.command()(flat(command))  # type: ignore[arg-type]
    return made


def test_fields_are_options_in_their_place() -> None:
    result = CliRunner().invoke(program(), ["a", "--at", "5", "-w", "x", "-w", "y", "--loud"])
    thing = Thing(Path("a"), Place(5), ["x", "y"])
    assert result.stdout == f"['at', 'file', 'loud', 'words'] {thing} True\n"


def test_defaults_are_those_of_the_fields() -> None:
    result = CliRunner().invoke(program(), ["a"])
    assert result.stdout.endswith(f" {Thing(Path('a'), Place(3))} False\n")


def test_a_field_without_default_is_required() -> None:
    result = CliRunner().invoke(program(), [])
    assert result.exit_code == 2
    assert "Missing argument" in result.output


def test_two_options_of_one_name_are_refused() -> None:
    def twice(thing: Thing, at: int = 1) -> None:
        """Take `at` twice."""

    with pytest.raises(ValueError, match="duplicate parameter name: 'at'"):
        flat(twice)


def test_no_command_has_many_parameters() -> None:
    from inspect import signature, unwrap

    for one in app.registered_commands:
        assert one.callback is not None
        assert len(signature(unwrap(one.callback)).parameters) <= 13, one.callback.__name__
