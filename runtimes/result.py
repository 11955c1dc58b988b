"""What a generation gave, and how it went."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from graftline.runtimes.counters import SpecDecode
from graftline.runtimes.decoding import Decoding, FinishReason
from graftline.runtimes.logprobs import TokenLogprob
from graftline.runtimes.marks import Marks


@dataclass(frozen=True)
class Stats:
    """How one sequence was decoded.

    `steps`: target passes after the prompt's. `mat`: tokens per such pass (0.0 when there was
    none). `tokens_per_second`: tokens after the first, per second after the first (0.0 when there
    was one). `time_to_first_token` in seconds, from the call to the first token, prompt included;
    `seconds`: the same to the last token. `accepted_per_depth`: for depth 1, 2, ..., the share of
    the steps that drafted so deep in which a token of that depth was accepted. `drafted`: drafted
    tokens. `row_invariant`: as the backend was measured. `lossless`: whether the tokens are the
    plain decoder's by construction. `controller`: what chose the drafts and what came of it.
    `predicted`: tokens per second that it expected of the steps it chose, of all sequences
    together (None: it expects nothing); `controller_share`: its own time, of that after the first
    token. `reused`: tokens of the prompt that were copied from what was read before, not read.
    `spec_decode`: counts of drafts, as serving stacks report them. `defaults`: options that hold
    because the checkpoint's generation_config.json says so. `acceptance_rate`: accepted of drafted
    tokens (None: none were drafted). `expected_accepted`: accepted tokens a step that it expected,
    `step_cost`: milliseconds a step, `expected_speedup`: over steps without drafts, with all
    sequences together (None likewise).
    """

    steps: int
    mat: float
    tokens_per_second: float
    time_to_first_token: float
    seconds: float
    accepted_per_depth: tuple[float, ...]
    row_invariant: bool
    lossless: bool
    drafted: int
    controller: str
    predicted: float | None
    controller_share: float
    reused: int = 0
    spec_decode: SpecDecode = field(default_factory=SpecDecode)
    defaults: Mapping[str, Any] = field(default_factory=dict[str, Any])
    acceptance_rate: float | None = None
    expected_accepted: float | None = None
    step_cost: float | None = None
    expected_speedup: float | None = None


@dataclass(frozen=True)
class Usage:
    """Tokens of the prompt, and those generated so far."""

    prompt_tokens: int
    completion_tokens: int


@dataclass(frozen=True)
class Result:
    """`tokens`: the new ids, a final end-of-text id included; `text`: what they say, without that
    id and, unless it is kept, without a stop string. With stop strings, `tokens` end with the one
    that completed it. `finish_reason`: "eos", "stop" (a stop string or id), "length"
    (max_new_tokens), "cancelled" or "timeout", with what there was until then. `id`: the request's.
    `logprobs`: one for each of `tokens`, and `prompt_logprobs` one for each of the prompt's, None
    for its first; None where the request does not ask for them."""

    text: str
    tokens: list[int]
    finish_reason: FinishReason
    stats: Stats
    id: str
    usage: Usage
    logprobs: list[TokenLogprob] | None = None
    prompt_logprobs: list[TokenLogprob | None] | None = None


def measure(
    one: Decoding,
    row_invariant: bool,
    lossless: bool,
    controller: str,
    defaults: Mapping[str, Any] | None = None,
) -> Stats:
    """The statistics of a sequence that has ended."""
    after, seconds = max(len(one.tokens) - 1, 0), one.ended - one.first
    spent = one.spent or Marks()
    depths = zip(one.accepted, one.offered, strict=True)
    return Stats(
        steps=one.steps,
        mat=after / one.steps if one.steps else 0.0,
        tokens_per_second=after / seconds if after and seconds > 0 else 0.0,
        time_to_first_token=(one.first or one.ended) - one.started,
        seconds=one.ended - one.started,
        accepted_per_depth=tuple(hits / offers for hits, offers in depths),
        row_invariant=row_invariant,
        lossless=lossless,
        drafted=one.drafted,
        controller=controller,
        predicted=spent.predicted,
        controller_share=spent.seconds / seconds if seconds > 0 else 0.0,
        reused=one.reused,
        spec_decode=SpecDecode.of(one),
        defaults=defaults or {},
        acceptance_rate=sum(one.accepted) / one.drafted if one.drafted else None,
        expected_accepted=spent.tokens / spent.sequences - 1.0 if spent.sequences else None,
        step_cost=spent.milliseconds / spent.steps if spent.steps else None,
        expected_speedup=spent.speedup,
    )
