"""config.json: read, its sizes checked, and narrowed to the text decoder it describes."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from graftline.errors import CheckpointError
from graftline.models.host import Watch
from graftline.optional import require

CONFIG = "config.json"
SIZES = (
    "vocab_size", "hidden_size", "n_embd", "d_model", "num_hidden_layers", "n_layer", "num_layers",
    "num_attention_heads", "n_head", "num_heads", "num_key_value_heads", "num_kv_heads", "head_dim",
    "intermediate_size", "n_inner", "ffn_dim", "moe_intermediate_size",
)  # fmt: skip
"""Keys that count something the weights have at least one number for."""
LENGTHS = ("max_position_embeddings", "n_positions", "sliding_window")
"""Keys that count positions: any 32-bit number is one."""
LONGEST = (1 << 31) - 1


def read_json(file: Path) -> dict[str, Any]:
    """A file's JSON object. Raises CheckpointError for anything else."""
    try:
        found: Any = json.loads(file.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{file}: not JSON ({error}); download it again") from error
    if not isinstance(found, dict):
        raise CheckpointError(f"{file}: not a JSON object; download it again")
    return cast("dict[str, Any]", found)


def read_raw(folder: Path) -> dict[str, Any]:
    """config.json as it stands. Raises CheckpointError when it is missing or damaged."""
    file = folder / CONFIG
    if not file.is_file():
        raise CheckpointError(f"{folder}: no config.json; give a Hugging Face folder")
    return read_json(file)


def check_sizes(file: Path, raw: Mapping[str, Any], numbers: int) -> None:
    """Raise CheckpointError naming a size that no model over `numbers` stored numbers can have."""
    for key, value in raw.items():
        if key == "text_config" and isinstance(value, dict):
            check_sizes(file, cast("dict[str, Any]", value), numbers)
        elif key in SIZES and not isinstance(value, (list, type(None))):
            _check(file, key, value, numbers, f"all its weights are {numbers} numbers")
        elif key in LENGTHS and value is not None:
            least = 0 if key == "sliding_window" else 1
            _check(file, key, value, LONGEST, "positions are 32-bit numbers", least)


def _check(file: Path, key: str, value: Any, most: int, why: str, least: int = 1) -> None:
    if type(value) is not int:
        raise CheckpointError(f"{file}: {key}={value!r} is not a whole number; correct it")
    if value < least:
        raise CheckpointError(f"{file}: {key}={value} is less than {least}; correct it")
    if value > most:
        raise CheckpointError(f"{file}: {key}={value} is too large: {why}; correct it")


def read_config(folder: Path, raw: Mapping[str, Any]) -> Any:
    """The transformers config. Raises CheckpointError where transformers does not take it."""
    transformers = require("transformers")
    file = folder / CONFIG
    try:
        return transformers.AutoConfig.from_pretrained(folder, trust_remote_code=False)
    except Exception as error:
        kind = raw.get("model_type")
        known = "not known to" if kind else "missing, as needed by"
        reason = " ".join(str(error).split("\n\n")[0].split()) or type(error).__name__
        unknown = ("does not recognize", "trust_remote_code")
        if kind and not any(words in str(error) for words in unknown):
            raise CheckpointError(f"{file}: {reason}") from error
        raise CheckpointError(
            f"{file}: model_type {kind!r} is {known} transformers {transformers.__version__}; "
            "export the model to ONNX yourself and give the .onnx file"
        ) from error


def text_decoder(config: Any, tell: Watch) -> Any:
    """The config itself, or a composite model's text decoder's, which then is what is hosted.

    Raises CheckpointError where that is no decoder AutoModelForCausalLM builds.
    """
    if getattr(config, "is_encoder_decoder", False):
        return config
    text = config.get_text_config(decoder=True)
    if text is config:
        return config
    auto = require("transformers.models.auto.modeling_auto")
    if type(text) not in auto.MODEL_FOR_CAUSAL_LM_MAPPING:
        raise CheckpointError(
            f"config.json: model_type '{config.model_type}' has the text decoder "
            f"'{text.model_type}', which transformers builds only as a part of it; export that "
            "decoder to ONNX yourself and give the .onnx file"
        )
    tell(f"of the composite model '{config.model_type}' its text decoder '{text.model_type}'")
    text = copy.deepcopy(text)
    for key in ("tie_word_embeddings", "quantization_config"):
        if outer := getattr(config, key, None):
            setattr(text, key, outer)
    return text


def end_ids(raw: Mapping[str, Any]) -> dict[str, Any]:
    """The eos_token_id of config.json, or of the text decoder in it; empty where it names none."""
    text = raw.get("text_config")
    inner = cast("dict[str, Any]", text) if isinstance(text, dict) else {}
    for found in (raw.get("eos_token_id"), inner.get("eos_token_id")):
        if found is not None:
            return {"eos_token_id": found}
    return {}
