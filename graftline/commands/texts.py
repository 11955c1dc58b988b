"""Text that users give as an argument, on stdin or in a file: UTF-8, or one line that says where
it is not."""

from __future__ import annotations

import os
import sys
from pathlib import Path

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
