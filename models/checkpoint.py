"""Open whatever the user points at: a Hugging Face folder, GGUF, ONNX or a saved program."""

from __future__ import annotations

from pathlib import Path

from graftline.errors import CheckpointError
from graftline.models.config_file import CONFIG
from graftline.models.gguf_file import GgufCheckpoint
from graftline.models.hf import HfCheckpoint
from graftline.models.host import Checkpoint
from graftline.models.onnx_file import OnnxCheckpoint
from graftline.models.pt2_file import Pt2Checkpoint
from graftline.models.recognise import ADAPTER

GGUF_MAGIC = b"GGUF"


def open_checkpoint(path: str | Path) -> Checkpoint:
    """Say what kind of checkpoint lies at `path`. Raises CheckpointError; reads next to nothing."""
    place = Path(path).expanduser()
    if not place.exists():
        raise CheckpointError(
            f"{place}: no such file or folder; give a local checkpoint (nothing is downloaded)"
        )
    if place.is_dir():
        return _folder(place)
    if _magic(place) == GGUF_MAGIC or place.suffix == ".gguf":
        return GgufCheckpoint(place)
    if place.suffix == ".onnx":
        return OnnxCheckpoint(place)
    if place.suffix == ".pt2":
        return Pt2Checkpoint(place)
    if place.suffix == ".safetensors":
        raise CheckpointError(f"{place}: weights alone; give the folder with config.json")
    raise CheckpointError(
        f"{place}: unknown kind of checkpoint; give a Hugging Face folder, .gguf, .onnx or .pt2"
    )


def _folder(place: Path) -> Checkpoint:
    if any((place / name).is_file() for name in (CONFIG, ADAPTER)):
        return HfCheckpoint(place)
    graphs = sorted(place.glob("*.onnx"))
    if len(graphs) == 1:
        return OnnxCheckpoint(graphs[0])
    if graphs:
        names = ", ".join(g.name for g in graphs)
        raise CheckpointError(f"{place}: several graphs ({names}); give one of the files")
    raise CheckpointError(f"{place}: no config.json and no .onnx; give a Hugging Face folder")


def _magic(file: Path) -> bytes:
    with file.open("rb") as stream:
        return stream.read(4)
