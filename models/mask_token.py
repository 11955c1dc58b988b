"""The mask token of a checkpoint: the id that stands where a token is to be predicted."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, cast

from graftline.draft import token_ids
from graftline.errors import CheckpointError

CONFIG_KEYS = ("pard_token", "ptd_token_id", "mask_token_id")
"""What published configs call it: PARD (arXiv 2504.18583), parallel token decoding, others."""
TOKENIZER_CONFIGS = ("tokenizer_config.json", "special_tokens_map.json")


def mask_token(folder: Path) -> int | None:
    """The id that config.json names, or else that of the tokenizer's `mask_token`; None without.

    Whether it lies within the vocabulary is for those to check who use it. Raises CheckpointError
    for a damaged file, an id that is no number, and a mask token that the tokenizer does not know.
    """
    config = _read(folder / "config.json")
    for key in CONFIG_KEYS:
        found = config.get(key)
        if found is None:
            continue
        if type(found) is not int:
            raise CheckpointError(f"{folder / 'config.json'}: {key}={found!r} is no token id")
        return found
    for name in TOKENIZER_CONFIGS:
        token: Any = _read(folder / name).get("mask_token")
        if isinstance(token, dict):
            token = cast("dict[str, Any]", token).get("content")
        if token is not None:
            return _id_of(str(token), folder, name)
    return None


def _id_of(token: str, folder: Path, source: str) -> int | None:
    """None where the folder has no tokenizer.json, whose ids could be looked up."""
    ids = token_ids([file for file in folder.glob("tokenizer.json")])
    if ids is not None and token not in ids:
        raise CheckpointError(f"{folder / source}: mask_token {token!r} is not in tokenizer.json")
    return None if ids is None else ids[token]


def _read(file: Path) -> dict[str, Any]:
    """A file's JSON object; empty where there is no file."""
    try:
        found: Any = json.loads(file.read_text("utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{file}: damaged ({error}); download it again") from error
    return cast("dict[str, Any]", found) if isinstance(found, dict) else {}
