"""Text that users give as an argument, on stdin or in a file: UTF-8, or one line that says where
it is not."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from graftline.errors import RequestError


def decoded(data: bytes, name: str) -> str:
    """`data` as text, without a byte order mark. Raises RequestError naming the first bad byte."""
    try:
        return data.decode("utf-8").removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        raise RequestError(
            f"{name}: byte {error.start} is not UTF-8; convert it to UTF-8"
        ) from error


def from_file(path: Path) -> str:
    """The text of a file. Raises RequestError where it cannot be read."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise RequestError(f"{path} cannot be read: {error.strerror or error}") from error
    return decoded(data, str(path))


def from_stdin() -> str:
    """All of stdin, its line ends as newlines."""
    return decoded(sys.stdin.buffer.read(), "stdin").replace("\r\n", "\n")


def from_argument(text: str, name: str) -> str:
    """An argument of the command line, which the shell passes on as bytes of any kind."""
    return decoded(os.fsencode(text), name)


def read_tools(path: Path) -> list[dict[str, Any]]:
    """The JSON schemas in a file. Raises RequestError where there is none, or no list of them."""
    try:
        tools: object = json.loads(decoded(path.read_bytes(), str(path)))
    except OSError as error:
        raise RequestError(f"--tools {path} cannot be read ({error.strerror})") from error
    except ValueError as error:
        raise RequestError(f"--tools {path} is not JSON: {error}") from error
    if not isinstance(tools, list):
        raise RequestError(f"--tools {path} holds no list; put the functions' schemas in one")
    return tools


def template_values(given: Sequence[str]) -> dict[str, Any] | None:
    """The arguments NAME=VALUE of a chat template; a value that is no JSON is a text. None where
    there is none."""
    values: dict[str, Any] = {}
    for one in given:
        name, equals, value = one.partition("=")
        if not (name and equals):
            raise RequestError(f"--template-arg {one}: use NAME=VALUE")
        try:
            values[name] = json.loads(value)
        except ValueError:
            values[name] = value
    return values or None
