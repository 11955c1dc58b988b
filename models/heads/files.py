"""The files of a draft head: its config and its tensors, and which of them are taken under what
name. Every tensor is taken, explained, or refused."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import onnx_ir as ir

from graftline.errors import CheckpointError
from graftline.models.block_scales import block_of
from graftline.models.config_file import CONFIG, read_json
from graftline.models.converted import unpickled_files
from graftline.models.heads.head import Tap
from graftline.models.host import silent
from graftline.models.shards import INDEX, SINGLE, check_index, weight_files
from graftline.models.weights import Stored, WeightSource, read_headers

QUANTIZED = "hf_quant_config.json"
"""Where ModelOpt says how it quantized a head."""
NAMED = ("medusa_lm_head", "hydra_lm_head", "adapter_model")
"""Heads whose weights have a file name of their own: X.safetensors, X.pt or X.bin."""
PICKLED = (".pt", ".bin", ".pth")


@dataclass(frozen=True)
class HeadFiles:
    """What lies at a path: config.json ({} where there is none) and the tensors, unread; `taps`
    are those that the caller gives in place of the file's. `spelt` turns a tensor's name back into
    what the files call it. `unread`: weights beside those that are read."""

    path: Path
    config: Mapping[str, Any]
    weights: WeightSource
    taps: tuple[Tap, ...] | None = None
    spelt: Callable[[str], str] = str
    unread: tuple[str, ...] = ()

    def has(self, key: str) -> bool:
        """Whether the files hold a tensor of that name."""
        return key in self.weights.stored

    def called(self, key: str) -> str:
        """What the files call a tensor, or would."""
        stored = self.weights.stored.get(key)
        return self.spelt(key) if stored is None else stored.name

    def shape(self, key: str) -> tuple[int, ...]:
        """The shape of a tensor. Raises CheckpointError where there is none."""
        if key not in self.weights.stored:
            raise CheckpointError(
                f"{self.path}: tensor '{self.called(key)}' is missing; download the head again"
            )
        return self.weights.stored[key].shape

    def matrix(self, key: str) -> tuple[int, int]:
        """The rows and columns of a matrix. Raises CheckpointError for anything else."""
        shape = self.shape(key)
        if len(shape) != 2:
            raise CheckpointError(
                f"{self.path}: tensor '{self.called(key)}' is {list(shape)}, not a matrix; "
                "download the head again"
            )
        return shape[0], shape[1]

    def renamed(self, rename: Callable[[str], str], back: Callable[[str], str]) -> HeadFiles:
        """The same tensors under other names; `back` undoes `rename`. Raises CheckpointError where
        two tensors get one name."""
        stored: dict[str, Stored] = {}
        for key, tensor in self.weights.stored.items():
            if (name := rename(key)) in stored:
                raise CheckpointError(
                    f"{self.path}: '{tensor.name}' and '{stored[name].name}' are the same tensor; "
                    "remove one"
                )
            stored[name] = tensor

        def spelt(key: str) -> str:
            return self.spelt(back(key))

        return replace(self, weights=replace(self.weights, stored=stored), spelt=spelt)

    def matching(self, pattern: str) -> list[re.Match[str]]:
        """The tensors whose whole name matches, in the order of their names."""
        matches = (re.fullmatch(pattern, key) for key in sorted(self.weights.stored))
        return [match for match in matches if match]


def read_files(path: Path) -> HeadFiles:
    """The files of a head: a folder, or its weights with a config.json beside them or none.

    Raises CheckpointError for what is missing, damaged, or a pickle that holds more than tensors.
    """
    if not path.exists():
        raise CheckpointError(f"{path}: no such file or folder; give a local draft head")
    folder = path if path.is_dir() else path.parent
    config = read_json(folder / CONFIG) if (folder / CONFIG).is_file() else {}
    _check_quantized(folder / QUANTIZED)
    files = _weights(path)
    source = read_headers(files)
    if path.is_dir():
        check_index(folder, source)
    block = block_of(str(folder / CONFIG), config.get("quantization_config"))
    beside = _beside(path, files) if path.is_dir() else ()
    return HeadFiles(path, config, WeightSource(source.stored, block), unread=beside)


def _beside(folder: Path, files: list[Path]) -> tuple[str, ...]:
    """The weights of a folder beside those that are read, or were converted to what is read."""
    pickled = not any(file.parent == folder for file in files)
    weights = [p for p in sorted(folder.iterdir()) if p.suffix in (".safetensors", *PICKLED)]
    if pickled:
        return tuple(p.name for p in weights if p.suffix not in PICKLED)
    return tuple(p.name for p in weights if p not in files)


def _check_quantized(file: Path) -> None:
    """Raise CheckpointError where ModelOpt's file says that the weights are quantized."""
    inner: Any = read_json(file).get("quantization") if file.is_file() else None
    quantization = cast("dict[str, Any]", inner) if isinstance(inner, dict) else {}
    if method := quantization.get("quant_algo"):
        raise CheckpointError(
            f"{file}: the head is quantized by '{method}', which graftline does not read; give the "
            "head as it was before quantization"
        )


def _weights(path: Path) -> list[Path]:
    if path.is_file():
        return [_plain(path)]
    named = [
        path / f"{stem}{end}"
        for stem in NAMED
        for end in (".safetensors", ".pt", ".bin")
        if (path / f"{stem}{end}").is_file()
    ]
    whole = (path / SINGLE).is_file() or (path / INDEX).is_file()
    if named and not whole:
        return [_plain(named[0])]
    return weight_files(path, silent)


def _plain(file: Path) -> Path:
    """The file itself, or the safetensors that a pickle was converted to."""
    if file.suffix == ".safetensors":
        return file
    if file.suffix in PICKLED:
        return unpickled_files([file])
    raise CheckpointError(f"{file}: no weights; give a folder, .safetensors, .pt or .bin")


@dataclass
class Taken:
    """The tensors of a head's files as they are taken under our names, each once."""

    files: HeadFiles
    tensors: dict[str, ir.TensorProtocol] = field(default_factory=dict[str, ir.TensorProtocol])
    used: set[str] = field(default_factory=set[str])

    def take(self, key: str, name: str, shape: Iterable[int]) -> None:
        """The tensor `key` under our `name`, in fp32. Raises CheckpointError where it is missing or
        has another shape."""
        actual, needed = self.files.shape(key), tuple(shape)
        if actual != needed:
            raise CheckpointError(
                f"{self.files.path}: tensor '{self.files.called(key)}' is {list(actual)}, but by "
                f"config.json and the other tensors it must be {list(needed)}; they do not belong "
                "together"
            )
        tensor = self.files.weights.tensor(key, name, needed, ir.DataType.FLOAT)
        scale = self.files.weights.scale_of(key)
        self.used |= {key} if scale is None else {key, scale}
        self.tensors[name] = tensor

    def take_if(self, key: str, name: str, shape: Iterable[int]) -> bool:
        """As `take`, where there is such a tensor; whether there is."""
        if self.files.has(key):
            self.take(key, name, shape)
        return self.files.has(key)

    def rest(self, harmless: Mapping[str, str]) -> dict[str, ir.TensorProtocol]:
        """All that was taken. `harmless`: pattern of a whole name -> why it is not needed.

        Raises CheckpointError for a tensor that was not taken and that nothing explains.
        """
        left = sorted(self.files.weights.stored.keys() - self.used)
        unknown = [n for n in left if not any(re.fullmatch(p, n) for p in harmless)]
        if unknown:
            more = f" and {len(unknown) - 1} more" if len(unknown) > 1 else ""
            name = self.files.called(unknown[0])
            raise CheckpointError(
                f"{self.files.path}: tensor '{name}'{more} has no place in such a head; it is "
                "of a kind that graftline does not host, or its config.json is another's"
            )
        return self.tensors
