"""Prompts of a call: a text, chat messages or token ids, and the ids that they are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from numbers import Integral
from typing import Any, cast

import numpy as np

from graftline.errors import RequestError
from graftline.runtimes.request import Ints, Message, Prompt, Prompts
from graftline.runtimes.text.chat_template import TemplateArguments
from graftline.runtimes.text.tokenizer import Tokenizer, refuse_arguments


def split_prompts(prompts: Prompts) -> tuple[list[Prompt], bool]:
    """The prompts of a call, and whether it was a batch. Raises RequestError for an empty one."""
    if isinstance(prompts, (str, np.ndarray)):
        return [prompts], False
    if not isinstance(prompts, (list, tuple)):
        raise RequestError(_KINDS.format(type(prompts).__name__))
    parts = list(cast("Sequence[Any]", prompts))
    if not parts:
        raise RequestError(_EMPTY)
    if isinstance(parts[0], (Mapping, Integral)):
        return [parts], False
    return parts, True


def encode_prompt(
    prompt: Prompt,
    tokenizer: Tokenizer | None,
    raw: bool,
    vocabulary: int,
    template: TemplateArguments | None = None,
    begun: str = "",
) -> Ints:
    """The ids of one prompt, and of what its answer has `begun` with. Raises RequestError when it
    is empty, of no known kind, or has ids outside the vocabulary, and where the chat template
    refuses it or what `template` gives it."""
    ids: list[int]
    template = template or TemplateArguments()
    if isinstance(prompt, str):
        if not prompt:
            raise RequestError(_EMPTY)
        ids = _need(tokenizer).encode(prompt, raw, template, begun)
    else:
        parts: list[Any] = list(prompt) if isinstance(prompt, _LISTS) else [None]
        if all(isinstance(p, Mapping) for p in parts) and parts:
            ids = _need(tokenizer).encode(_messages(parts), raw, template, begun)
        elif all(isinstance(p, Integral) and p is not True and p is not False for p in parts):
            refuse_arguments(template, "a list of token ids")
            ids = [int(p) for p in parts]
            ids += _need(tokenizer).encode_part(begun) if begun else []
        else:
            raise RequestError(_KINDS.format(_kind(prompt)))
    if len(ids) == 0:
        raise RequestError("the prompt is empty: it has no tokens")
    for place, token in enumerate(ids):
        if not 0 <= token < vocabulary:
            raise RequestError(
                f"token id {token} at position {place} is out of range; the vocabulary has ids 0 "
                f"to {vocabulary - 1}"
            )
    return np.asarray(ids, np.int64)


_EMPTY = "the prompt is empty; give a text, chat messages or token ids"
_LISTS = (list, tuple, np.ndarray)
_KINDS = "a prompt is a text, a list of chat messages or a list of token ids, not {}"


def _kind(prompt: object) -> str:
    if isinstance(prompt, _LISTS):
        names = {type(p).__name__ for p in cast("Sequence[object]", prompt)}
        return "a list of " + " and ".join(sorted(names))
    return type(prompt).__name__


def _need(tokenizer: Tokenizer | None) -> Tokenizer:
    if tokenizer is None:
        raise RequestError("this bundle has no tokenizer; give the prompt as token ids")
    return tokenizer


def _messages(parts: Sequence[Any]) -> list[Message]:
    for place, message in enumerate(cast("Sequence[Message]", parts)):
        calls = message.get("role") == "assistant" and message.get("tool_calls")
        if "role" not in message or not ("content" in message or calls):
            raise RequestError(
                f"message {place} needs the keys 'role' and 'content' (an assistant's with "
                "'tool_calls' may have no content)"
            )
    return list(parts)
