"""Checkpoints whose tensors are stored under other names than the model's: converted once."""

from __future__ import annotations

import json
import pickle
import re
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import onnx_ir as ir

from graftline.errors import CheckpointError
from graftline.models.cache import cached, fingerprint
from graftline.models.host import Watch
from graftline.models.unread import unread
from graftline.models.weights import WeightSource, read_headers

WEIGHTS = "model.safetensors"
UNREAD = "unread.json"
CONVERSION = 2
"""Raised whenever converting gives other weights, so that no older conversion is used again."""


def converted(
    config: Any, files: list[Path], source: WeightSource, settings: Path, tell: Watch
) -> tuple[WeightSource, list[str]]:
    """The weights under the model's own names, as transformers itself loads and converts them; and
    the stored names that it did not read.

    Raises CheckpointError when tensors are missing or misshapen: none is ever made up.
    """

    def build(folder: Path) -> None:
        tell(f"converting {len(files)} weight files through transformers (once)")
        model, left = _load(config, files[0].parent, source)
        write_state(model, folder / WEIGHTS)
        (folder / UNREAD).write_text(json.dumps(left), "utf-8")

    folder = cached("converted", f"{fingerprint([settings, *files])}-{CONVERSION}", build)
    left = json.loads((folder / UNREAD).read_text("utf-8"))
    return read_headers([folder / WEIGHTS]), left


def _load(config: Any, folder: Path, source: WeightSource) -> tuple[Any, list[str]]:
    """transformers' model of the tensors in `source`, and the names it left unread."""
    import torch

    from graftline.models.export.host_model import empty_model

    whole = empty_model(config)
    state = _state(source)
    try:
        model, info = type(whole).from_pretrained(
            None, config=config, state_dict=state, dtype=torch.float32, output_loading_info=True
        )
    except Exception as error:
        raise CheckpointError(f"{folder}: {str(error).strip().splitlines()[0]}") from error
    missing = sorted(info["missing_keys"])
    if missing:
        raise CheckpointError(
            f"{folder}: {len(missing)} tensors missing, first '{missing[0]}'; "
            "download the checkpoint again"
        )
    wrong = sorted(str(row[0]) for row in info.get("mismatched_keys", ()))
    if wrong:
        raise CheckpointError(
            f"{folder}: tensor '{wrong[0]}' has another shape than the config asks for; "
            "config.json and weights do not belong together"
        )
    ignored = getattr(whole, "_keys_to_ignore_on_load_unexpected", None) or ()
    dropped = {n for n in state if any(re.search(p, n) for p in ignored)}
    unexpected = set(info["unexpected_keys"])
    left = unread(source, state.keys() - (unexpected | dropped), whole)
    return model, sorted({*left, *(unexpected - state.keys())})  # transformers may rename first


def _state(source: WeightSource) -> dict[str, Any]:
    """Every tensor of the source for torch: FP8 times its scales in fp32, others as stored."""
    import torch
    from safetensors import safe_open

    scales = {s for key in source.stored if (s := source.scale_of(key)) is not None}
    state: dict[str, Any] = {}
    with ExitStack() as stack:
        opened = {
            file: stack.enter_context(safe_open(file, framework="pt")) for file in source.files()
        }
        for key, stored in source.stored.items():
            if key in scales:
                continue
            if source.scale_of(key) is None:
                state[key] = opened[stored.file].get_tensor(stored.name)
            else:
                values = source.tensor(key, key, stored.shape, ir.DataType.FLOAT).numpy()
                state[key] = torch.from_numpy(values)
    return state


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
    return unpickled_files(_pickled_shards(folder))


def unpickled_files(shards: list[Path]) -> Path:
    """The tensors of pickled files as one safetensors file. Raises CheckpointError."""

    def build(place: Path) -> None:
        from safetensors.torch import save_file

        state: dict[str, Any] = {}
        for shard in shards:
            state.update(_tensors_in(shard))
        _untie(state)
        save_file(state, place / WEIGHTS, metadata={"format": "pt"})

    return cached("pickled", fingerprint(shards), build) / WEIGHTS


def _tensors_in(shard: Path) -> dict[str, Any]:
    """The tensors of one pickled file, by name; code in it is never run."""
    import torch

    try:
        rows = torch.load(shard, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        code = re.search(r"Unsupported \w+: GLOBAL (\w+(?:\.\w+)+)", str(error))
        what = f"it holds code, {code[1]}, which is not run" if code else "or damaged"
        raise CheckpointError(
            f"{shard}: not a plain tensor pickle ({what}); convert it to safetensors"
        ) from error
    except (RuntimeError, EOFError, OSError, ValueError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0].split(". ")[0]
        raise CheckpointError(f"{shard}: damaged ({reason}); download it again") from error
    if not isinstance(rows, dict) or not all(torch.is_tensor(v) for v in rows.values()):
        raise CheckpointError(f"{shard}: holds more than tensors; convert to safetensors")
    return rows


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
