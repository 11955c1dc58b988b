"""What `--draft` and `--draft-depths` ask for, and what a draft must share with its target: the
vocabulary."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from graftline.errors import CheckpointError, GraftlineError

if TYPE_CHECKING:
    from graftline.facts import DecoderFacts

TOKENIZER = "tokenizer.json"
DEPTHS = "depths"
"""What a recipe's needs call the sub-models of a draft."""
FEW = 8
"""Added tokens that may differ in a vocabulary of any size; 1 % of them in a large one."""
MASK_TOKEN = "mask token"
"""What a recipe's needs call it."""
_DEPTHS_HELP = "as in --draft int8 --draft-depths 12,20"


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


def depth_stage(blocks: int) -> str:
    """The stage of a draft's sub-model of so many blocks."""
    return f"depth-{blocks}"


def parse_depths(text: str) -> tuple[int, ...]:
    """Read `12,20`. Raises GraftlineError for what is not whole numbers."""
    words = [word.strip() for word in text.split(",")]
    if not all(word.isdecimal() for word in words):
        raise GraftlineError(
            f"--draft-depths {text}: takes numbers of blocks joined by commas, {_DEPTHS_HELP}"
        )
    return tuple(map(int, words))


def check_depths(depths: Sequence[int], draft: str | None, layers: int | None = None) -> None:
    """Raise GraftlineError unless `depths` rise and are sub-models of a draft of `layers` blocks
    (None: not known yet)."""
    if not depths:
        return
    said = f"--draft-depths {','.join(map(str, depths))}"
    if draft is None:
        raise GraftlineError(f"{said}: there is no draft engine to cut; add one, {_DEPTHS_HELP}")
    if any(b <= a for a, b in pairwise((0, *depths))):
        raise GraftlineError(f"{said}: depths start at 1 and increase, {_DEPTHS_HELP}")
    if layers is not None and depths[-1] >= layers:
        span = f"use depths of 1 to {layers - 1}" if layers > 1 else "it cannot be cut"
        raise GraftlineError(f"{said}: the draft {draft} has {layers} blocks; {span}")


def check_mask_token(facts: DecoderFacts, who: str, draft: str) -> None:
    """Raise GraftlineError unless the facts of a draft name a mask token within its vocabulary."""
    if facts.mask_token is None:
        raise GraftlineError(
            f"{who} needs a draft trained to fill masks, and neither config nor tokenizer of "
            f"{draft} names a mask token; use another checkpoint"
        )
    if not 0 <= facts.mask_token < facts.vocabulary:
        raise GraftlineError(
            f"{draft}: its mask token {facts.mask_token} is not among its {facts.vocabulary} ids; "
            "use another checkpoint"
        )


def check_vocabulary(
    target: Sequence[Path],
    draft: Sequence[Path],
    sizes: tuple[int, int],
    source: str,
    mask: int | None = None,
) -> str | None:
    """A drafted id must mean the same token to both models.

    `target` and `draft` are tokenizer files, `sizes` the rows of the two logits. Where both have a
    tokenizer.json its ids and tokens must be equal (logits may be padded differently, and the
    target may lack the draft's own mask token, of the id `mask`); else the sizes. A few added
    tokens may differ where the draft has a row for every id of the target: the rule judges ids, so
    a wrong guess costs a draft and no text. Returns a line that names those. Raises GraftlineError
    naming the first difference of any other kind.
    """
    ours, theirs = token_ids(target), token_ids(draft)
    remedy = "a draft needs the target's own vocabulary; use another checkpoint, or --draft int8"
    if ours is None or theirs is None:
        if sizes[0] != sizes[1]:
            raise GraftlineError(
                f"draft {source}: vocabulary of {sizes[1]}, the target's is {sizes[0]}; {remedy}"
            )
        return None
    other = [
        token
        for token in sorted(ours.keys() | theirs.keys())
        if ours.get(token) != theirs.get(token) and (token in ours or theirs[token] != mask)
    ]
    if not other:
        return None
    added = _added(target), _added(draft)
    first = next((t for t in other if not _is_added(t, ours, theirs, added)), other[0])
    few = len(other) <= max(FEW, len(ours) // 100) and max(ours.values()) < sizes[1]
    if not few or not _is_added(first, ours, theirs, added):
        raise GraftlineError(
            f"draft {source}: the token {first!r} is id {theirs.get(first)} there and "
            f"{ours.get(first)} in the target; {remedy}"
        )
    return (
        f"draft {source}: {len(other)} added tokens differ from the target's, first {first!r}; "
        "where they occur drafts are rejected, the text stays the target's own"
    )


def _is_added(
    token: str,
    ours: Mapping[str, int],
    theirs: Mapping[str, int],
    added: tuple[set[str], set[str]],
) -> bool:
    """True where the token is an added one for each side that has it."""
    return (token not in ours or token in added[0]) and (token not in theirs or token in added[1])


def _added(files: Sequence[Path]) -> set[str]:
    """The added tokens of a tokenizer.json that `token_ids` has read."""
    file = next(f for f in files if f.name == TOKENIZER)
    content: Any = json.loads(file.read_text(encoding="utf-8"))
    return {str(row["content"]) for row in content.get("added_tokens") or ()}


def token_ids(files: Sequence[Path]) -> dict[str, int] | None:
    """Token to id, as tokenizer.json lists them, added tokens included; None without that file.

    Raises CheckpointError for a file that is no tokenizer.
    """
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
