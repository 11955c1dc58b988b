"""A folder's tokenizer files; tokenizer.json is built where only its older forms are there."""

from __future__ import annotations

from pathlib import Path

from graftline.models.cache import cached, fingerprint
from graftline.models.host import Watch, silent
from graftline.optional import require

FAST = "tokenizer.json"
OLDER = ("tokenizer.model", "spiece.model", "sentencepiece.bpe.model", "vocab.json", "vocab.txt")
"""What a tokenizer.json can be built from (merges.txt and the configs beside it)."""
FILES = (
    FAST,
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "merges.txt",
    *OLDER,
    "chat_template.jinja",
)
BUILT = (FAST, "tokenizer_config.json", "chat_template.jinja")


def tokenizer_files(folder: Path, tell: Watch = silent) -> list[Path]:
    """The tokenizer's files, in a fixed order; what tokenizer.json had to be built for is told.

    Where it cannot be built that is told too, and the model takes ids only.
    """
    found = [folder / n for n in FILES if (folder / n).is_file()]
    if (folder / FAST).is_file() or not any((folder / n).is_file() for n in OLDER):
        return found
    named = next(n for n in OLDER if (folder / n).is_file())
    config = [folder / "config.json"] if (folder / "config.json").is_file() else []
    try:
        place = cached("tokenizer", fingerprint([*found, *config]), lambda to: _build(folder, to))
    except Exception as error:  # transformers and sentencepiece raise anything
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        tell(f"no tokenizer.json, and none can be built from {named} ({reason}): ids only")
        return []
    tell(f"tokenizer.json was built from {named} by transformers")
    return [place / n for n in BUILT if (place / n).is_file()]


def _build(folder: Path, to: Path) -> None:
    transformers = require("transformers")
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    tokenizer.save_pretrained(to)
    if not (to / FAST).is_file():
        raise ValueError(f"{type(tokenizer).__name__} has no fast form")
