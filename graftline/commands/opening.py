"""A bundle opened for a command that decodes with it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from graftline.commands import libraries

if TYPE_CHECKING:
    from graftline.bundle.writer import Watch
    from graftline.runtimes.engine import Engine
    from graftline.runtimes.one_pass.engine import DecodeEngine


def open_engine(bundle: Path, watch: Watch, **options: Any) -> Engine:
    """The engine of a bundle; `options` are those of `runtimes.load.load`, which says what it
    raises. ONNX Runtime stays silent from here on."""
    libraries.silence_onnxruntime()
    from graftline.runtimes.load import load

    watch(f"opening {bundle}")
    return load(bundle, watch=watch, **options)


def open_decoder(bundle: Path, watch: Watch, threads: int | None) -> DecodeEngine:
    """The engine of a bundle whose host runs once. Raises RequestError for a decoder of text."""
    libraries.silence_onnxruntime()
    from graftline.runtimes.one_pass.engine import load_decoder

    watch(f"opening {bundle}")
    return load_decoder(bundle, threads=threads)
