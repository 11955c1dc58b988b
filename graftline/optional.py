"""Libraries the base install lacks: imported when needed, one line where they are missing."""

from __future__ import annotations

import importlib
from typing import Any

from graftline.errors import BackendError

EXPORT = ("torch", "transformers", "accelerate")
"""What exporting a checkpoint needs, whatever its format."""


def require(name: str, extra: str = "export") -> Any:
    """The module `name`, which `graftline[extra]` installs.

    Raises BackendError: the library is missing, or is there and cannot be imported.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        library = name.partition(".")[0]
        absent = isinstance(error, ModuleNotFoundError) and error.name in (None, library, name)
        reason = str(error).strip().splitlines()[0]
        what = "is not installed" if absent else f"cannot be imported ({reason})"
        raise BackendError(f'{library} {what}; run: pip install "graftline[{extra}]"') from error


def require_export() -> None:
    """Raise BackendError unless a checkpoint can be exported here."""
    for name in EXPORT:
        require(name)
