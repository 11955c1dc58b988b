"""Checkpoints whose tensors are stored otherwise than the model names them: converted once."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from graftline.errors import CheckpointError
from graftline.models.cache import cached, fingerprint
from graftline.models.host import Watch

WEIGHTS = "model.safetensors"


def converted(config: Any, files: list[Path], settings: Path, tell: Watch) -> Path:
    """The weights under the model's own names, as transformers itself loads and converts them.

    Raises CheckpointError when tensors are missing or misshapen: none is ever made up.
    """

    def build(folder: Path) -> None:
        tell(f"converting {len(files)} weight files through transformers (once)")
        write_state(_load(config, files), folder / WEIGHTS)

    return cached("converted", fingerprint([settings, *files]), build) / WEIGHTS


def _load(config: Any, files: list[Path]) -> Any:
    import torch
    from safetensors.torch import load_file

    from graftline.models.export import empty_model

    state = {name: value for file in files for name, value in load_file(file).items()}
    family = type(empty_model(config))
    try:
        model, info = family.from_pretrained(
            None, config=config, state_dict=state, dtype=torch.float32, output_loading_info=True
        )
    except Exception as error:
        raise CheckpointError(f"{files[0].parent}: {str(error).strip().splitlines()[0]}") from error
    missing = sorted(info["missing_keys"])
    if missing:
        raise CheckpointError(
            f"{files[0].parent}: {len(missing)} tensors missing, first '{missing[0]}'; "
            "download the checkpoint again"
        )
    wrong = sorted(str(row[0]) for row in info.get("mismatched_keys", ()))
    if wrong:
        raise CheckpointError(
            f"{files[0].parent}: tensor '{wrong[0]}' has another shape than the config asks for; "
            "config.json and weights do not belong together"
        )
    return model


def write_state(model: Any, file: Path) -> None:
    """Save a model's tensors under their own names, each tied tensor once."""
    from safetensors.torch import save_file

    seen: set[int] = set()
    state: dict[str, Any] = {}
    for name, value in model.state_dict(keep_vars=True).items():
        if id(value) not in seen:
            seen.add(id(value))
            state[name] = value.detach().contiguous()
    save_file(state, file, metadata={"format": "pt"})


def unpickled(folder: Path) -> Path:
    """The tensors of a pickled checkpoint as one safetensors file; only plain tensors are read.

    Raises CheckpointError on shards that are missing, damaged, or hold anything but tensors.
    """
    shards = _pickled_shards(folder)

    def build(place: Path) -> None:
        import torch
        from safetensors.torch import save_file

        state: dict[str, Any] = {}
        for shard in shards:
            try:
                rows = torch.load(shard, map_location="cpu", weights_only=True)
            except Exception as error:
                raise CheckpointError(
                    f"{shard}: not a plain tensor pickle "
                    f"({str(error).strip().splitlines()[0]}); convert it to safetensors"
                ) from error
            if not isinstance(rows, dict) or not all(torch.is_tensor(v) for v in rows.values()):
                raise CheckpointError(f"{shard}: holds more than tensors; convert to safetensors")
            state.update(rows)
        _untie(state)
        save_file(state, place / WEIGHTS, metadata={"format": "pt"})

    return cached("pickled", fingerprint(shards), build) / WEIGHTS


def _untie(state: dict[str, Any]) -> None:
    """safetensors refuses two names for one memory: keep the first of each, copy partial views."""
    seen: set[tuple[int, tuple[int, ...]]] = set()
    for name in list(state):
        tensor = state[name]
        key = (tensor.data_ptr(), tuple(tensor.shape))
        if tensor.numel() and key in seen:
            state[name] = tensor.clone()
        elif tensor.untyped_storage().nbytes() != tensor.numel() * tensor.element_size():
            state[name] = tensor.clone().contiguous()
        else:
            state[name] = tensor.contiguous()
        seen.add(key)


def _pickled_shards(folder: Path) -> list[Path]:
    index = folder / "pytorch_model.bin.index.json"
    if not index.is_file():
        return sorted(p for p in folder.glob("*.bin") if p.name.startswith("pytorch_model"))
    try:
        names = sorted(set(json.loads(index.read_text("utf-8"))["weight_map"].values()))
    except (ValueError, KeyError, AttributeError) as error:
        raise CheckpointError(f"{index}: damaged ({error!r}); download it again") from error
    missing = [n for n in names if Path(n).name != n or not (folder / n).is_file()]
    if missing:
        raise CheckpointError(f"{folder}: shard {missing[0]} is missing; download it again")
    return [folder / n for n in names]
