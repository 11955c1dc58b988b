"""Open whatever the user points at: a folder of Hugging Face or diffusers, GGUF, ONNX or a saved
program."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from graftline.errors import CheckpointError
from graftline.models.config_file import CONFIG
from graftline.models.diffusers.component import DiffusersComponent, is_component
from graftline.models.diffusers.folder import INDEX, DiffusersFolder
from graftline.models.gguf.file import GgufCheckpoint
from graftline.models.hf import HfCheckpoint
from graftline.models.host import Checkpoint, Host, Watch, silent
from graftline.models.onnx_file import OnnxCheckpoint
from graftline.models.pt2_file import Pt2Checkpoint
from graftline.models.recognise import ADAPTER

GGUF_MAGIC = b"GGUF"
WEIGHTS = ("*.safetensors", "model.safetensors.index.json", "pytorch_model*.bin")


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


@dataclass(frozen=True)
class Chosen:
    """One of several forms of a model that lie in one folder, and how to choose another."""

    checkpoint: Checkpoint
    note: str

    @property
    def path(self) -> Path:
        """The file or folder that is read."""
        return self.checkpoint.path

    def host(self, full_export: bool = False, watch: Watch | None = None) -> Host:
        """The host of the chosen form; `watch` is told of the choice first."""
        (watch or silent)(self.note)
        return self.checkpoint.host(full_export, watch)


def _folder(place: Path) -> Checkpoint:
    if (place / INDEX).is_file():
        return DiffusersFolder(place)
    if (place / ADAPTER).is_file():
        return HfCheckpoint(place)
    graphs = sorted(place.glob("*.onnx")) or sorted((place / "onnx").glob("*.onnx"))
    weights = [f for kind in WEIGHTS for f in place.glob(kind)]
    if (place / CONFIG).is_file() and (weights or not graphs):
        host = DiffusersComponent(place) if is_component(place) else HfCheckpoint(place)
        if not graphs:
            return host
        names = " or ".join(str(graph) for graph in graphs[:3])
        return Chosen(host, f"using {weights[0].name} with config.json; for the graph give {names}")
    if len(graphs) == 1:
        return Chosen(OnnxCheckpoint(graphs[0]), f"using {graphs[0].relative_to(place)}")
    if graphs:
        names = ", ".join(str(g.relative_to(place)) for g in graphs)
        raise CheckpointError(f"{place}: several graphs ({names}); give one of the files")
    raise CheckpointError(f"{place}: no config.json and no .onnx; give a Hugging Face folder")


def _magic(file: Path) -> bytes:
    with file.open("rb") as stream:
        return stream.read(4)
