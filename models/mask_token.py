"""The mask token of a checkpoint: the id that stands where a token is to be predicted."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

from graftline.draft import TOKENIZER, token_ids
from graftline.errors import CheckpointError

CONFIG_KEYS = ("pard_token", "ptd_token_id", "mask_token_id")
"""What published configs call it: PARD (arXiv 2504.18583), parallel token decoding, others."""
TOKENIZER_CONFIGS = ("tokenizer_config.json", "special_tokens_map.json")


def mask_token(folder: Path, files: Sequence[Path] = ()) -> int | None:
    """The id that config.json names, or else that of the tokenizer's `mask_token`; None without.

    Whether it lies within the vocabulary is for those to check who use it; most never do, so a mask
    token that the tokenizer does not know is none. Raises CheckpointError for a damaged file, and
    for an id that is no number.
    """
    config = _read(folder / "config.json")
    for key in CONFIG_KEYS:
        found = config.get(key)
        if found is None:
            continue
        if type(found) is not int:
            raise CheckpointError(f"{folder / 'config.json'}: {key}={found!r} is not a token id")
        return found
    for name in TOKENIZER_CONFIGS:
        token: Any = _read(folder / name).get("mask_token")
        if isinstance(token, dict):
            token = cast("dict[str, Any]", token).get("content")
        if token is not None:
            own = [folder / TOKENIZER] if (folder / TOKENIZER).is_file() else files
            ids = token_ids(own)
            return None if ids is None else ids.get(str(token))
    return None


def _read(file: Path) -> dict[str, Any]:
    """A file's JSON object; empty where there is no file."""
    try:
        found: Any = json.loads(file.read_text("utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{file}: damaged ({error}); download it again") from error
    return cast("dict[str, Any]", found) if isinstance(found, dict) else {}
