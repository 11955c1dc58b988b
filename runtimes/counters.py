"""Counts in the shape that serving stacks read: per request, and of an engine since it was loaded.

The names are those of vLLM's metrics (`vllm:spec_decode_num_drafts`, `vllm:prefix_cache_hits`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import zip_longest

from graftline.runtimes.decoding import Decoding


@dataclass(frozen=True)
class SpecDecode:
    """How drafts went. `num_drafts`: steps that verified one; `num_draft_tokens`: tokens in them,
    all branches included; `num_accepted_tokens`: those that stand in the text;
    `num_accepted_tokens_per_pos`: of these, how many at depth 1, 2, ... (a histogram)."""

    num_drafts: int = 0
    num_draft_tokens: int = 0
    num_accepted_tokens: int = 0
    num_accepted_tokens_per_pos: tuple[int, ...] = ()

    @property
    def mean_acceptance_length(self) -> float:
        """Tokens per step that verified a draft, the target's own token included; 1.0 where nothing
        was drafted."""
        return 1.0 + (self.num_accepted_tokens / self.num_drafts if self.num_drafts else 0.0)

    @property
    def draft_acceptance_rate(self) -> float:
        """Share of the drafted tokens that stand in the text."""
        return self.num_accepted_tokens / self.num_draft_tokens if self.num_draft_tokens else 0.0

    @property
    def acceptance_rate_per_pos(self) -> tuple[float, ...]:
        """For depth 1, 2, ...: the share of drafts of which a token was accepted there."""
        return tuple(hits / self.num_drafts for hits in self.num_accepted_tokens_per_pos)

    @classmethod
    def of(cls, one: Decoding) -> SpecDecode:
        """Of one sequence, until now."""
        accepted = tuple(one.accepted)
        return cls(one.offered[0] if one.offered else 0, one.drafted, sum(accepted), accepted)

    def plus(self, other: SpecDecode) -> SpecDecode:
        """Both together."""
        depths = zip_longest(
            self.num_accepted_tokens_per_pos, other.num_accepted_tokens_per_pos, fillvalue=0
        )
        return SpecDecode(
            self.num_drafts + other.num_drafts,
            self.num_draft_tokens + other.num_draft_tokens,
            self.num_accepted_tokens + other.num_accepted_tokens,
            tuple(a + b for a, b in depths),
        )


@dataclass(frozen=True)
class EngineStats:
    """An engine's requests since it was loaded; tokens and drafts are those of requests that have
    ended. `requests_finished`: how many, by finish reason ("error": what raised). `prompt_tokens`:
    read or copied; of them `prefix_cache_hits` were copied of `prefix_cache_queries` looked for.
    `prefix_cache_bytes`: what the cache holds now."""

    num_requests_running: int
    num_requests_waiting: int
    requests_finished: Mapping[str, int]
    prompt_tokens: int
    generation_tokens: int
    prefix_cache_queries: int
    prefix_cache_hits: int
    prefix_cache_bytes: int
    spec_decode: SpecDecode


@dataclass
class Totals:
    """What sequences that have ended come to."""

    finished: Counter[str] = field(default_factory=Counter[str])
    prompt_tokens: int = 0
    generation_tokens: int = 0
    reused: int = 0
    drafts: SpecDecode = field(default_factory=SpecDecode)

    def add(self, ones: Iterable[Decoding]) -> None:
        """Count sequences that have ended, each once."""
        for one in ones:
            self.finished[one.finish if one.error is None and one.finish else "error"] += 1
            self.prompt_tokens += one.read
            self.generation_tokens += len(one.tokens)
            self.reused += one.reused
            self.drafts = self.drafts.plus(SpecDecode.of(one))

    def with_more(self, ones: Iterable[Decoding]) -> Totals:
        """These and more, as an object of its own."""
        other = Totals(
            Counter(self.finished), self.prompt_tokens, self.generation_tokens, self.reused,
            self.drafts,
        )  # fmt: skip
        other.add(ones)
        return other
