"""What tests of grammars share: grammars, prompts, and an engine that writes random bytes."""

from __future__ import annotations

from typing import Any

import numpy as np
from toy_drafts import CheckedDraft
from toy_session import ToySession

from graftline.recipe import Recipe, recipe
from graftline.runtimes.engine import Engine
from graftline.runtimes.resources import Resources
from graftline.runtimes.text.tokenizer import Tokenizer

V = 260
SCHEMA = {
    "type": "object",
    "properties": {
        "colour": {"enum": ["red", "green"]},
        "sizes": {"type": "array", "items": {"type": "integer"}, "maxItems": 3},
        "told": {"type": "string", "maxLength": 6},
    },
    "required": ["colour", "sizes", "told"],
    "additionalProperties": False,
}
LARK = """start: "(" (start | WORD) ")"
WORD: /[a-c]{1,4}/"""
GRAMMARS: dict[str, dict[str, Any]] = {
    "json": {"json_schema": SCHEMA},
    "regex": {"regex": r"(ab|cd){2,9}-[0-9]{3}"},
    "lark": {"grammar": LARK},
}
WILD = Recipe("wild", "", "", True, (), "", "misbehaving", "point-mass", {"shape": "bushy"})
PROMPTS = ['{"colour": "red", "sizes": [12, 12, 12]', "abababab", "((((abc))))"]


class Wordy(ToySession):
    """Likes to repeat what follows the last token, and to end nowhere."""

    def logits_of(self, seen: Any) -> Any:
        logits = super().logits_of(seen)
        logits[256] -= 3.0
        return logits


def engine(tokenizer: Tokenizer, costs: Any = None, vocabulary: int = V) -> Engine:
    resources = Resources(
        draft=lambda: CheckedDraft(vocabulary=vocabulary), vocabulary=vocabulary,
        corpus=(np.asarray(tokenizer.encode_part('{"colour": "red", "sizes": [1')),),
    )  # fmt: skip
    session = Wordy(vocabulary=vocabulary, capacity=300)
    defaults = {"eos_token_id": 256} if vocabulary == V else {"eos_token_id": 2}
    return Engine(session, tokenizer, defaults, recipe("plain"), costs, resources=resources)
