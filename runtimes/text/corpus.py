"""Read the user's texts to retrieve from: one file or a folder, as token ids."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np

from graftline.errors import GraftlineError
from graftline.runtimes.session import Ints

SUFFIXES = (".txt", ".md", ".jsonl")
_FIELDS = ("text", "prompt")


def read_corpus(path: str | Path, encode: Callable[[str], Sequence[int]]) -> tuple[Ints, ...]:
    """The documents at `path` as token ids: a .txt or .md file is one document, each line of a
    .jsonl file is one (its field "text" or "prompt"), a folder is all such files below it, by name.

    Raises GraftlineError for a path that is not there or not readable, text that is not UTF-8 (the
    byte is named), a .jsonl line without text, and when there is no token at all.
    """
    documents: list[Ints] = []
    for file in _files(Path(path)):
        for text in _texts(file):
            ids = np.asarray(encode(text), dtype=np.int64)
            if len(ids):
                documents.append(ids)
    if not documents:
        raise GraftlineError(f"corpus {path}: no text in it; give files with text in them")
    return tuple(documents)


def _files(path: Path) -> list[Path]:
    wanted = ", ".join(SUFFIXES)
    if path.is_dir():
        files = sorted(f for f in path.rglob("*") if f.suffix in SUFFIXES and f.is_file())
        if not files:
            raise GraftlineError(f"corpus {path}: the folder holds no file of {wanted}")
        return files
    if not path.exists():
        raise GraftlineError(f"corpus {path}: there is no such file or folder")
    if path.suffix not in SUFFIXES:
        raise GraftlineError(f"corpus {path}: not one of {wanted}; rename or convert it")
    return [path]


def _texts(file: Path) -> Iterator[str]:
    try:
        text = file.read_bytes().decode("utf-8").removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        raise GraftlineError(
            f"corpus {file}: byte {error.start} is not UTF-8; convert the file to UTF-8"
        ) from error
    except OSError as error:
        raise GraftlineError(f"corpus {file}: cannot be read ({error.strerror})") from error
    if file.suffix != ".jsonl":
        yield text
        return
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            yield _field(line, f"corpus {file}: line {number}")


def _field(line: str, where: str) -> str:
    try:
        entry: object = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise GraftlineError(f"{where} is not JSON ({error})") from error
    if isinstance(entry, dict):
        table = cast("dict[str, Any]", entry)
        for field in _FIELDS:
            if isinstance(table.get(field), str):
                return table[field]
    raise GraftlineError(f'{where} has no text in a field "text" or "prompt"')
