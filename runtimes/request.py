"""A generation request: its settings and its prompts, refused in one line where they do not fit."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from numbers import Integral, Real
from typing import Any, TypedDict, cast

import numpy as np
import numpy.typing as npt

from graftline.errors import RequestError, nearest
from graftline.recipe import STEPS, Recipe
from graftline.runtimes.processors import Processor, Shaping
from graftline.runtimes.request_checks import (
    check_answers,
    check_grammar,
    check_number,
    check_shaping,
)
from graftline.runtimes.sampling import Sampling
from graftline.runtimes.text.chat_template import Message, TemplateArguments

Ids = Sequence[int] | npt.NDArray[np.integer[Any]]
Prompt = str | Sequence[Message] | Ids
Prompts = Prompt | Sequence[Prompt]
Ints = npt.NDArray[np.int64]


class Options(TypedDict, total=False):
    """Keyword options of `Engine.generate` and `Engine.stream`; `Request` has their meaning."""

    max_new_tokens: int | None
    temperature: float
    top_k: int
    top_p: float
    min_p: float
    repetition_penalty: float
    presence_penalty: float
    frequency_penalty: float
    no_repeat_ngram_size: int
    logit_bias: Mapping[int, float] | None
    logits_processors: Sequence[Processor]
    min_tokens: int
    json_schema: str | Mapping[str, Any] | None
    regex: str | None
    grammar: str | None
    seed: int | None
    n: int
    stop: str | Sequence[str]
    stop_token_ids: Sequence[int]
    include_stop: bool
    ignore_eos: bool
    raw: bool
    recipe: str | Recipe | None
    exact: bool | None
    batch: int | None
    step: str | None
    timeout: float | None
    logprobs: int | None
    prompt_logprobs: int | None
    request_id: str | None
    tools: Sequence[Mapping[str, Any]] | None
    enable_thinking: bool | None
    continue_final_message: bool
    template_args: Mapping[str, Any] | None
    answer_prefix: str


TEMPLATE_OPTIONS = (
    "tools", "enable_thinking", "continue_final_message", "template_args", "answer_prefix",
)  # fmt: skip
"""Options that say how messages become a prompt."""


@dataclass(frozen=True)
class Request:
    """What to generate. `max_new_tokens` None: as many as the capacity holds. A text ends before
    one of the texts `stop`, and at one of `stop_token_ids`, which is not part of it; the text of a
    special token is taken as its id. `temperature` 0 is greedy; top_k 0, top_p 1, min_p 0 and
    repetition_penalty 1 are off. `raw` leaves out the chat template. `recipe` overrides the
    bundle's runtime policy (None: the bundle's own). `exact` keeps to one kernel family, so that
    speculation cannot change a token even where a backend rounds differently for single rows
    (None: off). One `seed` gives the same tokens again, under every drafter whose drafts are
    certain; where drafts are drawn, or what is near is accepted, they depend on how much is drafted
    too. Of several prompts, `batch` are decoded together, and one that ends makes room for the next
    (None: all at once). `step`: "host" drafts and judges between engine calls, "fused" within them
    (None: as loaded).
    `timeout`: seconds after which a text ends where it is, waiting for its turn included.

    What shapes the target's logits before the next token is chosen, in this order (`processors`):
    `repetition_penalty` divides those of tokens in prompt and text; `presence_penalty` is taken
    from those of tokens in the text, `frequency_penalty` as often as they are in it (OpenAI's);
    `logit_bias` adds to those of ids; `logits_processors` are functions (path, logits [V]) ->
    logits [V] of the tokens so far and of nothing else; `no_repeat_ngram_size` tokens in a row come
    once; no text ends before `min_tokens`. `json_schema` (a dict or JSON), `regex` or `grammar`
    (Lark, llguidance's) says what the whole text must be. Drafts change none of it.

    `n`: answers for each prompt, each with random numbers of its own. `include_stop` keeps the stop
    text. `logprobs`: natural logarithms of the model's own distribution, before temperature and all
    that shapes it: of each chosen token, and of so many likeliest in its place; `prompt_logprobs`
    likewise of the prompt. `request_id` names the request, for `Engine.cancel`.

    For the chat template: `tools`, JSON schemas of functions that the model may call;
    `enable_thinking` (None: as the template has it); `continue_final_message`, where the answer
    goes on from the last message; `template_args`, whatever else it knows, by name. What a template
    does not know is refused. `answer_prefix` is how every answer begins: it is read with the prompt
    in one go (latent tokens that the model was taught to think at), and is no part of the text."""

    max_new_tokens: int | None = 128
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    no_repeat_ngram_size: int = 0
    logit_bias: Mapping[int, float] | None = None
    logits_processors: Sequence[Processor] = ()
    min_tokens: int = 0
    json_schema: str | Mapping[str, Any] | None = None
    regex: str | None = None
    grammar: str | None = None
    seed: int | None = None
    n: int = 1
    stop: str | Sequence[str] = ()
    stop_token_ids: Sequence[int] = ()
    include_stop: bool = False
    ignore_eos: bool = False
    raw: bool = False
    recipe: str | Recipe | None = None
    exact: bool | None = None
    batch: int | None = None
    step: str | None = None
    timeout: float | None = None
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    request_id: str | None = None
    tools: Sequence[Mapping[str, Any]] | None = None
    enable_thinking: bool | None = None
    continue_final_message: bool = False
    template_args: Mapping[str, Any] | None = None
    answer_prefix: str = ""

    def __post_init__(self) -> None:
        if self.max_new_tokens is not None:
            advice = "use at least 1, or None for as many as the capacity holds"
            check_number(self, "max_new_tokens", Integral, 1, math.inf, advice)
        check_number(self, "temperature", Real, 0, math.inf, "use 0 for greedy, or more")
        check_number(self, "top_k", Integral, 0, math.inf, "use 0 for all, or more")
        check_number(self, "top_p", Real, 0, 1, "use a share above 0, at most 1")
        check_number(self, "min_p", Real, 0, 1, "use a share from 0 to 1")
        check_number(self, "repetition_penalty", Real, 0, math.inf, "use 1 for none")
        if self.top_p == 0 or self.repetition_penalty == 0:
            name = "top_p" if self.top_p == 0 else "repetition_penalty"
            raise RequestError(f"{name} must be above 0, not 0; use 1 for none")
        if self.seed is not None:
            check_number(self, "seed", Integral, 0, math.inf, "use a whole number from 0")
        if self.batch is not None:
            check_number(self, "batch", Integral, 1, math.inf, "use at least 1")
        if self.timeout is not None:
            check_number(self, "timeout", Real, 0, math.inf, "use seconds, or None for no limit")
        for name in ("ignore_eos", "raw", "exact"):
            value = getattr(self, name)
            if not isinstance(value, bool) and (name != "exact" or value is not None):
                raise RequestError(f"{name} is {value!r}; use True or False")
        if self.step is not None and self.step not in STEPS:
            raise RequestError(f"step is {self.step!r}; use {' or '.join(STEPS)}")
        if not isinstance(self.stop, (str, list, tuple)):
            raise RequestError(f"stop is {self.stop!r}; use a text or a list of texts")
        ids: object = self.stop_token_ids
        if not isinstance(ids, (list, tuple)) or not all(
            isinstance(i, Integral) and int(i) >= 0 for i in cast("Sequence[object]", ids)
        ):
            raise RequestError(f"stop_token_ids is {ids!r}; use a list of token ids")
        self._check_template()
        if any(not isinstance(s, str) or not s for s in cast("Sequence[object]", self.stops)):
            raise RequestError("stop texts must not be empty")
        check_shaping(self)
        check_answers(self)
        check_grammar(self)

    @property
    def stops(self) -> tuple[str, ...]:
        """The stop strings."""
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)

    @property
    def sampling(self) -> Sampling:
        """How the next token is drawn."""
        return Sampling(
            float(self.temperature),
            int(self.top_k),
            float(self.top_p),
            float(self.min_p),
        )

    @property
    def shaping(self) -> Shaping:
        """What shapes the target's logits before that."""
        return Shaping(
            float(self.repetition_penalty),
            float(self.presence_penalty),
            float(self.frequency_penalty),
            tuple((int(token), float(bias)) for token, bias in (self.logit_bias or {}).items()),
            tuple(self.logits_processors),
            int(self.no_repeat_ngram_size),
            int(self.min_tokens),
        )

    @property
    def template(self) -> TemplateArguments:
        """What the chat template is given."""
        thinking = self.enable_thinking
        others = {} if thinking is None else {"enable_thinking": thinking}
        others |= self.template_args or {}
        return TemplateArguments(self.tools, self.continue_final_message, others)

    def _check_template(self) -> None:
        for name in ("enable_thinking", "continue_final_message"):
            value = getattr(self, name)
            if not isinstance(value, bool) and not (value is None and name == "enable_thinking"):
                raise RequestError(f"{name} is {value!r}; use True or False")
        begun = getattr(self, "answer_prefix")  # noqa: B009 - a caller may have given anything
        if not isinstance(begun, str):
            raise RequestError(f"answer_prefix is {begun!r}; use a text")
        if begun and self.continue_final_message:
            raise RequestError(
                "continue_final_message goes on from a message, which no answer_prefix begins; "
                'give answer_prefix=""'
            )
        tools: object = self.tools
        if tools is not None and not (
            isinstance(tools, (list, tuple))
            and all(isinstance(t, Mapping) for t in cast("Sequence[object]", tools))
        ):
            raise RequestError(
                "tools is no list of JSON schemas; give each function as a dict with its name, "
                "description and parameters"
            )
        given: Any = self.template_args
        if given is not None and not isinstance(given, Mapping):
            raise RequestError(f"template_args is {given!r}; use a dict of names and values")


def read_options(options: Mapping[str, Any]) -> Request:
    """The request of these keywords. Raises RequestError for an unknown one, naming the nearest."""
    known = [f.name for f in fields(Request)]
    for name in options:
        if name not in known:
            raise RequestError(f"unknown option '{name}'{nearest(name, known)}")
    return Request(**options)


def options_each(
    common: Mapping[str, Any], options: Sequence[Options] | None, prompts: int | None
) -> list[Mapping[str, Any]]:
    """The options of each prompt of a call (None: a single one), its own before those of the call.
    Raises RequestError where there is not one set of options for each prompt."""
    if options is None:
        return [common] * (1 if prompts is None else prompts)
    if prompts is None:
        raise RequestError("options=[...] is for a list of prompts; give one prompt's by name")
    given: object = options
    if not isinstance(given, (list, tuple)) or len(options) != prompts:
        what = f"{len(options)} sets" if isinstance(given, (list, tuple)) else repr(given)
        raise RequestError(f"options is {what} for {prompts} prompts; give a list of as many dicts")
    for place, own in enumerate(cast("Sequence[object]", options)):
        if not isinstance(own, Mapping):
            raise RequestError(f"options[{place}] is {own!r}; use a dict of options")
        for name in ("batch", "step"):
            if name in own:
                raise RequestError(f"options[{place}] has {name}, which is one for the whole call")
    return [{**common, **own} for own in options]
