"""What a GGUF file says about text: where it ends, how it is split, and keys that nothing reads."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from graftline.errors import CheckpointError
from graftline.models.host import Watch

TOKENIZER = "tokenizer."
ENDS = ("eos", "eot", "eom")
"""End of text, of a turn, of a message: llama.cpp stops at each."""
GPT2_SPLIT = {"gpt-2", "gpt2", "phi-2", "mpt", "olmo", "jais", "trillion", "roberta-bpe"}
"""Names of the pre-tokenizer under which llama.cpp splits as GPT-2 does."""
DIGITS_FIRST = {
    "smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b",
}  # fmt: skip
"""Names under which it takes every digit alone, and then splits as GPT-2 does."""
READ = {
    "ggml.model", "ggml.pre", "ggml.tokens", "ggml.scores", "ggml.token_type", "ggml.merges",
    "ggml.precompiled_charsmap", "ggml.add_space_prefix", "ggml.add_bos_token",
    "ggml.add_eos_token", "ggml.mask_token_id", "ggml.unknown_token_id", "ggml.padding_token_id",
    "ggml.bos_token_id", *(f"ggml.{end}_token_id" for end in ENDS), "chat_template",
}  # fmt: skip
UNUSED = {
    "ggml.prefix_token_id", "ggml.suffix_token_id", "ggml.middle_token_id", "huggingface.json",
    "ggml.token_type_count", "ggml.seperator_token_id", "ggml.cls_token_id",
}  # fmt: skip
"""Ids for filling in, classifiers and other readers' copies: no part of generating text."""


def end_ids(keys: Mapping[str, Any]) -> list[int]:
    """Every id that ends a text, the end of the text itself first; empty where none is named."""
    found = [keys.get(f"ggml.{end}_token_id") for end in ENDS]
    return list(dict.fromkeys(int(token) for token in found if token is not None))


def tell_unread(keys: Mapping[str, Any], tell: Watch) -> None:
    """Name the tokenizer's keys that are neither read nor known to be of no use."""
    strange = [
        k
        for k in sorted(keys.keys() - READ - UNUSED)
        if not k.startswith(("ggml.fim_", "chat_template"))
    ]
    if strange:
        tell(f"not read: {', '.join(TOKENIZER + k for k in strange)} (about text, not the model)")


def settle_split(tokenizer: Any, keys: Mapping[str, Any], tell: Watch) -> None:
    """Split text before byte-level merges as the file's `tokenizer.ggml.pre` says.

    transformers knows some names and takes GPT-2's rule for all others: here the names that mean
    another rule get it, and a name that nobody knows is told.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise CheckpointError("tokenizer: transformers made none that can be saved as one file")
    name = keys.get("ggml.pre")
    if keys.get("ggml.model") != "gpt2" or name is None or name in GPT2_SPLIT:
        return
    rules = json.loads(backend.to_str())["pre_tokenizer"] or {}
    if rules.get("type") != "ByteLevel":
        return  # transformers knows the name
    if name not in DIGITS_FIRST:
        tell(f"tokenizer.ggml.pre '{name}' is not known: text is split by GPT-2's rule instead")
        return
    from tokenizers import pre_tokenizers

    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=rules.get("add_prefix_space", False))
    digits = pre_tokenizers.Digits(individual_digits=True)
    backend.pre_tokenizer = pre_tokenizers.Sequence([digits, byte_level])
