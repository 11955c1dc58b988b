"""What `--draft` asks for, and the one thing a draft must share with its target: the vocabulary."""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from graftline.errors import CheckpointError, GraftlineError

TOKENIZER = "tokenizer.json"


@dataclass(frozen=True)
class DraftSource:
    """`checkpoint` None: the target's own, quantized to `dtype` (drafting by lower precision)."""

    checkpoint: Path | None
    dtype: str

    @classmethod
    def parse(cls, text: str, dtypes: Collection[str], target: str) -> DraftSource:
        """Read `DTYPE`, `PATH` or `PATH:DTYPE`; `target` is the target's dtype.

        Raises GraftlineError for a draft that would be the target itself.
        """
        if text == target:
            raise GraftlineError(
                f"--draft {text} with --dtype {target} is the target itself; use a lower precision "
                "or another checkpoint"
            )
        if text in dtypes:
            return cls(None, text)
        path, _, dtype = text.rpartition(":")
        if path and dtype in dtypes:
            return cls(Path(path), dtype)
        return cls(Path(text), "fp32")


def check_vocabulary(
    target: Sequence[Path], draft: Sequence[Path], sizes: tuple[int, int], source: str
) -> None:
    """A drafted id must mean the same token to both models.

    `target` and `draft` are tokenizer files, `sizes` the rows of the two logits. Where both have a
    tokenizer.json its ids and tokens must be equal (logits may be padded differently); else the
    sizes. Raises GraftlineError naming the first difference.
    """
    ours, theirs = _vocabulary(target), _vocabulary(draft)
    remedy = "a draft needs the target's own vocabulary; use another checkpoint, or --draft int8"
    if ours is None or theirs is None:
        if sizes[0] != sizes[1]:
            raise GraftlineError(
                f"draft {source}: vocabulary of {sizes[1]}, the target's is {sizes[0]}; {remedy}"
            )
        return
    for token in ours.keys() | theirs.keys():
        if ours.get(token) != theirs.get(token):
            raise GraftlineError(
                f"draft {source}: the token {token!r} is id {theirs.get(token)} there and "
                f"{ours.get(token)} in the target; {remedy}"
            )


def _vocabulary(files: Sequence[Path]) -> dict[str, int] | None:
    """Token to id, as tokenizer.json lists them, added tokens included; None without that file."""
    file = next((f for f in files if f.name == TOKENIZER), None)
    if file is None:
        return None
    try:
        content: Any = json.loads(file.read_text(encoding="utf-8"))
        listed: Any = content["model"]["vocab"]
        if isinstance(listed, list):  # a Unigram model lists [token, score] in order of id
            found = {str(row[0]): at for at, row in enumerate(cast("list[Any]", listed))}
        else:
            found = {str(token): int(at) for token, at in cast("dict[str, Any]", listed).items()}
        added = content.get("added_tokens") or ()
        return found | {str(row["content"]): int(row["id"]) for row in added}
    except (OSError, ValueError, TypeError, KeyError, IndexError) as error:
        raise CheckpointError(f"{file}: no tokenizer that can be read ({error})") from error
