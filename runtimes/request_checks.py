"""What options of a `Request` may be: each that does not fit is refused in one line."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from numbers import Integral, Real
from typing import Any, cast

from graftline.errors import RequestError

GRAMMARS = ("json_schema", "regex", "grammar")
"""Options that say what a text must be; a request has one of them at most."""


def check_number(
    request: object, name: str, kind: type, low: float, high: float, advice: str
) -> None:
    """Raises RequestError unless that option is a finite number within [low, high]."""
    value = getattr(request, name)
    fits = isinstance(value, kind) and not isinstance(value, bool)
    if not fits or not math.isfinite(value) or not low <= value <= high:
        raise RequestError(f"{name} is {value!r}; {advice}")


def check_shaping(request: Any) -> None:
    """Raises RequestError for options that cannot shape logits."""
    for name in ("presence_penalty", "frequency_penalty"):
        check_number(request, name, Real, -math.inf, math.inf, "use 0 for none, 2 is much")
    advice = "use 0 for none, or how many tokens in a row must not come twice"
    check_number(request, "no_repeat_ngram_size", Integral, 0, math.inf, advice)
    check_number(request, "min_tokens", Integral, 0, math.inf, "use 0 for none")
    most = request.max_new_tokens
    if most is not None and request.min_tokens > most:
        raise RequestError(
            f"min_tokens is {request.min_tokens} and max_new_tokens {most}; lower min_tokens"
        )
    given: object = request.logit_bias
    if given is not None and (
        not isinstance(given, Mapping)
        or not all(_biases(*pair) for pair in cast("Mapping[Any, Any]", given).items())
    ):
        raise RequestError(
            f"logit_bias is {given!r}; use a dict from token ids to numbers; -inf bars a token"
        )
    listed: object = request.logits_processors
    if not isinstance(listed, (list, tuple)) or not all(
        callable(one) for one in cast("Sequence[object]", listed)
    ):
        raise RequestError(
            f"logits_processors is {listed!r}; use a list of functions (path, logits) -> logits"
        )


def check_answers(request: Any) -> None:
    """Raises RequestError for options that no answer can be given for."""
    for name in ("logprobs", "prompt_logprobs"):
        if getattr(request, name) is not None:
            advice = "use how many of the likeliest tokens to list, 0 for the token's own alone"
            check_number(request, name, Integral, 0, math.inf, advice)
    check_number(request, "n", Integral, 1, math.inf, "use at least 1")
    if request.n > 1 and request.temperature == 0:
        raise RequestError(
            f"n={request.n} at temperature 0 is the same text {request.n} times; set temperature"
        )
    if not isinstance(request.include_stop, bool):
        raise RequestError(f"include_stop is {request.include_stop!r}; use True or False")
    name = request.request_id
    if name is not None and (not isinstance(name, str) or not name):
        raise RequestError(f"request_id is {name!r}; use a text, or None to have one made")


def check_grammar(request: Any) -> None:
    """Raises RequestError for more than one grammar, or one that no text could end."""
    wanted = [name for name in GRAMMARS if getattr(request, name) is not None]
    if len(wanted) > 1:
        raise RequestError(f"{' and '.join(wanted)}: a request follows one of them; choose one")
    for name in wanted:
        kinds = (str, Mapping) if name == "json_schema" else str
        if not isinstance(value := getattr(request, name), kinds):
            what = "a schema as a dict or as JSON text" if name == "json_schema" else "a text"
            raise RequestError(f"{name} is {value!r}; use {what}")
        if request.ignore_eos:
            raise RequestError(f"{name} says where the text ends; leave ignore_eos out")


def _biases(token: object, bias: object) -> bool:
    if isinstance(token, bool) or not isinstance(token, Integral) or int(token) < 0:
        return False
    if isinstance(bias, bool) or not isinstance(bias, Real):
        return False
    return float(bias) < math.inf
