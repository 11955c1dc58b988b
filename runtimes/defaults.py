"""What a checkpoint's own generation_config.json asks for, where a request says nothing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from graftline.errors import BundleError, RequestError
from graftline.runtimes.request import Request

ANSWER_PREFIX = "answer_prefix"
"""How every answer begins: what `optimize` was told, beside the checkpoint's own."""
SAMPLING = ("temperature", "top_k", "top_p", "min_p")
"""Used where the checkpoint samples: `do_sample` is true."""
ALWAYS = (
    "repetition_penalty", "no_repeat_ngram_size", "max_new_tokens", "min_tokens", ANSWER_PREFIX,
)  # fmt: skip
NAMED = {"min_new_tokens": "min_tokens"}
"""What a request calls a key of transformers, where it has another name for it."""
_NOT_USED: dict[str, Any] = {
    "num_beams": 1, "penalty_alpha": None, "typical_p": 1.0, "epsilon_cutoff": 0.0,
    "eta_cutoff": 0.0, "encoder_repetition_penalty": 1.0,
    "bad_words_ids": None, "force_words_ids": None, "suppress_tokens": None,
    "begin_suppress_tokens": None, "sequence_bias": None, "exponential_decay_length_penalty": None,
    "forced_bos_token_id": None, "forced_eos_token_id": None, "guidance_scale": 1.0,
    "min_length": 0, "dola_layers": None, "watermarking_config": None,
    "stop_strings": None, "max_length": None, "max_time": None,
}  # fmt: skip
"""Keys of transformers that change what is written and are not used here, and the value of each
that changes nothing."""


@dataclass(frozen=True)
class Defaults:
    """Options that a request takes from the checkpoint unless it gives them, and the settings of
    the checkpoint's that change a text and are not used."""

    options: Mapping[str, Any] = field(default_factory=dict[str, Any])
    unused: Mapping[str, Any] = field(default_factory=dict[str, Any])

    @property
    def words(self) -> str:
        """One line: what is used, and what is not."""
        used = ", ".join(f"{name}={value}" for name, value in self.options.items())
        rest = ", ".join(f"{name}={value}" for name, value in self.unused.items())
        told = f"the checkpoint's own: {used}" if used else "none of the checkpoint's own"
        return f"{told}; not used: {rest}" if rest else told

    def taken(self, request: Request) -> dict[str, Any]:
        """Those that hold for a request."""
        return {n: value for n, value in self.options.items() if getattr(request, n) == value}


def read_defaults(generation: Mapping[str, Any]) -> Defaults:
    """The defaults in a generation_config.json, with the meaning that transformers gives it: it
    samples only where `do_sample` is true, with a temperature of 1 unless it has another.

    Raises BundleError where a value is none that a request could have.
    """
    samples = generation.get("do_sample") is True
    given = ((NAMED.get(name, name), value) for name, value in generation.items())
    named = {name: value for name, value in given if value is not None}
    taken = {name: named[name] for name in (*SAMPLING, *ALWAYS) if name in named}
    unused = {
        name: named[name] for name, off in _NOT_USED.items() if name in named and named[name] != off
    }
    if samples:
        taken = {"temperature": 1.0, **taken}
    else:
        taken = {name: value for name, value in taken.items() if name not in SAMPLING}
    plain = Request()
    taken: dict[str, Any] = {n: value for n, value in taken.items() if value != getattr(plain, n)}
    try:
        Request(**taken)
    except RequestError as error:
        raise BundleError(
            f"the checkpoint's generation_config.json: {error}; mend it and rebuild, or load with "
            "defaults=False"
        ) from error
    return Defaults(taken, unused)
