"""Which files of a folder hold its weights, and whether its index is up to date."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

from graftline.errors import CheckpointError
from graftline.models.config_file import read_json
from graftline.models.host import Watch
from graftline.models.weights import WeightSource

SINGLE = "model.safetensors"
INDEX = f"{SINGLE}.index.json"


def weight_files(folder: Path, tell: Watch, name: str = SINGLE) -> list[Path]:
    """A folder's safetensors files: that of the `name` where there is one, as the library that
    wrote them takes it, or else the shards its index names. Raises CheckpointError."""
    single, index = folder / name, folder / f"{name}.index.json"
    shards = sorted(set(weight_map(index).values())) if index.is_file() else []
    if single.is_file():
        _tell_others(folder, [name], tell)
        return [single]
    if shards:
        missing = [n for n in shards if not (folder / n).is_file()]
        if missing:
            raise CheckpointError(
                f"{folder}: {len(missing)} of {len(shards)} shards missing, first {missing[0]}; "
                "download the checkpoint again"
            )
        _tell_others(folder, shards, tell)
        return [folder / n for n in shards]
    if any(p.name.startswith("pytorch_model") for p in folder.glob("*.bin")):
        from graftline.models.converted import unpickled

        return [unpickled(folder)]
    raise CheckpointError(f"{folder}: no {name} and no {name}.index.json; download the weights")


def weight_map(index: Path) -> dict[str, str]:
    """Tensor to shard, as the index says. Raises CheckpointError where it cannot be read."""
    listed: Any = read_json(index).get("weight_map")
    if not isinstance(listed, dict) or not listed:
        raise CheckpointError(f"{index}: damaged (no weight_map); download it again")
    names = cast("dict[str, Any]", listed)
    bad = [n for n in names.values() if not isinstance(n, str) or Path(n).name != n]
    if bad:
        raise CheckpointError(f"{index}: shard {bad[0]!r} is not a plain file name; refused")
    return names


def check_index(folder: Path, source: WeightSource, name: str = SINGLE) -> None:
    """Raise CheckpointError where the index names a tensor that its shard does not hold."""
    index = folder / f"{name}.index.json"
    if (folder / name).is_file() or not index.is_file():
        return
    for tensor, shard in weight_map(index).items():
        held = source.stored.get(tensor)
        if held is None or held.file.name != (folder / shard).resolve().name:
            raise CheckpointError(
                f"{index}: stale, tensor '{tensor}' is not in {shard}; download the checkpoint "
                "again"
            )


def _tell_others(folder: Path, read: list[str], tell: Watch) -> None:
    """Name the safetensors files beside those that are read."""
    others = sorted(p.name for p in folder.glob("*.safetensors") if p.name not in read)
    if others:
        more = f" and {len(others) - 1} more" if len(others) > 1 else ""
        what = read[0] if len(read) == 1 else f"the {len(read)} shards of the index"
        tell(f"not read: {others[0]}{more}; the weights are those of {what}")
