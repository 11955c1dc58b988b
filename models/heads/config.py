"""config.json of a draft head, read key by key: what nobody asked for is refused."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, NoReturn, cast

from graftline.errors import CheckpointError

HARMLESS: Mapping[str, str] = {
    **dict.fromkeys(
        ("_name_or_path", "base_model_name_or_path", "auto_map", "transformers_version",
         "transformers.js_config", "architectures", "model_type", "version", "torch_dtype", "dtype",
         "use_cache", "return_dict", "output_attentions", "output_hidden_states", "license"),
        "says where a file comes from and how a library opens it",
    ),
    **dict.fromkeys(
        ("initializer_range", "attention_dropout", "hidden_dropout", "resid_pdrop", "dropout",
         "dropout_rate", "embed_requires_grad", "ttt_length", "length", "router_aux_loss_coef",
         "num_anchors", "loss_decay_gamma", "max_anchors", "gradient_checkpointing",
         "confidence_head_alpha", "ce_loss_alpha", "l1_loss_alpha", "auf", "lambda_base_start",
         "lambda_base_decay_ratio"),
        "used in training only",
    ),
    **dict.fromkeys(
        ("bos_token_id", "eos_token_id", "pad_token_id", "tie_word_embeddings", "num_ctx",
         "max_position_embeddings", "pretraining_tp", "max_window_layers", "target_model_type"),
        "the host's own, or read from the host",
    ),
    **dict.fromkeys(
        ("add_cross_attention", "bad_words_ids", "begin_suppress_tokens", "chunk_size_feed_forward",
         "cross_attention_hidden_size", "decoder_start_token_id", "diversity_penalty", "do_sample",
         "early_stopping", "encoder_no_repeat_ngram_size", "exponential_decay_length_penalty",
         "finetuning_task", "forced_bos_token_id", "forced_eos_token_id", "id2label",
         "is_decoder", "is_encoder_decoder", "label2id", "length_penalty", "max_length",
         "min_length", "no_repeat_ngram_size", "num_beam_groups", "num_beams",
         "num_return_sequences", "output_scores", "prefix", "problem_type", "remove_invalid_values",
         "repetition_penalty", "return_dict_in_generate", "sep_token_id", "suppress_tokens",
         "task_specific_params", "temperature", "tf_legacy_loss", "tie_encoder_decoder",
         "tokenizer_class", "top_k", "top_p", "torchscript", "typical_p", "use_bfloat16"),
        "in every config of transformers: of other tasks, or of generation",
    ),
    "decoder_sparse_step": "which layers have experts, as the tensors show",
}  # fmt: skip
"""Keys that change nothing of what a head computes, and why."""


@dataclass
class Config:
    """The keys of a config as they are asked for; `place` leads its errors and `where` names it."""

    place: str
    raw: Mapping[str, Any]
    where: str = "config.json"
    read: set[str] = field(default_factory=set[str])
    decided: list[str] = field(default_factory=list[str])

    def has(self, key: str) -> bool:
        """Whether the key is there with a value."""
        return self.raw.get(key) is not None

    def whole(self, key: str, default: int | None = None, least: int = 1) -> int:
        """A whole number of at least `least`. Raises CheckpointError for anything else."""
        value = self._get(key, default)
        if type(value) is not int or value < least:
            self.refuse(f"{key}={value!r} is not a whole number of {least} or more")
        return value

    def number(self, key: str, default: float | None = None) -> float:
        """A number. Raises CheckpointError for anything else."""
        value = self._get(key, default)
        if isinstance(value, bool) or not isinstance(value, int | float):
            self.refuse(f"{key}={value!r} is not a number")
        return float(value)

    def flag(self, key: str, default: bool) -> bool:
        """True or false; `default` where the key is absent."""
        value = self._get(key, default)
        if not isinstance(value, bool):
            self.refuse(f"{key}={value!r} is neither true nor false")
        return value

    def choice(self, key: str, default: str, known: Collection[str]) -> str:
        """One of the `known` words; `default` where the key is absent."""
        value = self._get(key, default)
        if value not in known:
            self.refuse(f"{key}={value!r} is not hosted; known: {', '.join(sorted(known))}")
        return str(value)

    def ids(self, key: str) -> tuple[int, ...] | None:
        """A list of numbers of layers, or None where there is none or an empty one."""
        value = self._get(key, ())
        if not isinstance(value, list | tuple) or any(
            type(n) is not int for n in cast("list[Any]", value)
        ):
            self.refuse(f"{key}={value!r} is not a list of numbers of layers")
        return tuple(cast("list[int]", value)) or None

    def lists(self, key: str) -> tuple[tuple[int, ...], ...]:
        """Lists of numbers of layers, in order each. Raises CheckpointError for anything else."""
        value = self._get(key, None)
        if not isinstance(value, list) or not value:
            self.refuse(f"{key}={value!r} is not a list of lists of layers")
        rows = cast("list[Any]", value)
        found = (Config(self.place, {key: row}, self.where).ids(key) for row in rows)
        return tuple(tuple(sorted(row or ())) for row in found)

    def inner(self, key: str) -> Config:
        """The object under `key`, empty where there is none."""
        value = self._get(key, {})
        if not isinstance(value, dict):
            self.refuse(f"{key}={value!r} is not an object")
        inner = cast("dict[str, Any]", value)
        return Config(self.place, inner, f"{self.where}: {key}", decided=self.decided)

    def must(self, key: str, value: object, why: str) -> None:
        """Raise CheckpointError where the key is there and not `value`."""
        self.read.add(key)
        if self.has(key) and self.raw[key] != value:
            self.refuse(f"{key}={self.raw[key]!r} is not hosted ({why})")

    def decide(self, line: str) -> None:
        """Note a decision that is to be printed, once."""
        if line not in self.decided:
            self.decided.append(line)

    def done(self, harmless: Collection[str] = ()) -> None:
        """Raise CheckpointError for a key that nobody asked for and nothing explains."""
        left = sorted(self.raw.keys() - self.read - HARMLESS.keys() - set(harmless))
        unknown = [k for k in left if self.raw[k] is not None]
        if unknown:
            self.refuse(
                f"{unknown[0]}={self.raw[unknown[0]]!r} is a key that such a head is not known to "
                "have; what it changes is unknown"
            )

    def refuse(self, what: str) -> NoReturn:
        """Raise CheckpointError with `what` about this config."""
        raise CheckpointError(f"{self.place}: {self.where}: {what}")

    def _get(self, key: str, default: object) -> Any:
        self.read.add(key)
        value = self.raw.get(key)
        if value is not None:
            return value
        if default is None:
            self.refuse(f"{key} is missing")
        return default
