"""One call of the engine: its sequences, their text, and the policy that decodes them."""

from __future__ import annotations

import time
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice

import numpy as np

from graftline.errors import RequestError
from graftline.recipe import Recipe
from graftline.runtimes.control.account import Account, level
from graftline.runtimes.control.pacer import Fixed, Pacer
from graftline.runtimes.control.steady import Steady
from graftline.runtimes.decoding import Decoding
from graftline.runtimes.drafter import Drafter
from graftline.runtimes.loop import decode
from graftline.runtimes.request import Ints, Request
from graftline.runtimes.resources import Resources
from graftline.runtimes.result import Result, measure
from graftline.runtimes.rules import make_rule
from graftline.runtimes.session import Session
from graftline.runtimes.study.records import Records
from graftline.runtimes.text.tokenizer import Tokenizer, Transcript


@dataclass(frozen=True)
class Policy:
    """A recipe's runtime part, kept between requests: what it learned stays."""

    recipe: Recipe
    drafter: Drafter
    pacer: Pacer
    records: Records | None = None
    """Where acceptance is recorded."""
    pace: Steady = field(default_factory=level)
    """How this machine runs now, against its measured costs."""


class Job:
    """Decodes one batch of prompts on a session and reads the tokens as text.

    `exact` keeps every step to one kernel family: on a backend whose rows depend on how many go
    together, no step scores a single row, and none scores branches.
    """

    def __init__(
        self,
        session: Session,
        tokenizer: Tokenizer | None,
        ends: frozenset[int],
        policy: Policy,
        prompts: Sequence[Ints],
        request: Request,
        exact: bool,
        resources: Resources | None = None,
    ) -> None:
        if request.stops and tokenizer is None:
            raise RequestError("this bundle has no tokenizer, so stop texts cannot be found")
        if exact and session.exact_rows is None:
            raise RequestError(
                "exact=True: at this precision a row's result depends on the rows beside it, so "
                "speculation cannot be exact; rebuild with --dtype fp32"
            )
        self._session, self._policy, self._request = session, policy, request
        self._resources = resources or Resources()
        self._prompts, self._exact = prompts, exact
        self._ends = frozenset[int]() if request.ignore_eos else ends
        self._transcripts = [
            None if tokenizer is None else Transcript(tokenizer, request.stops) for _ in prompts
        ]
        self._read = [0] * len(prompts)
        self._batch: list[Decoding] = []
        self._account: Account | None = None

    def run(self, pieces: bool = True) -> Generator[str]:
        """Decode, yielding after every target pass the new text of the first sequence, if any.

        Without `pieces` the text is read once a sequence has ended, unless a stop string could end
        it earlier: between two steps the processor's caches are cold, and every call costs.
        """
        started = time.perf_counter()
        least = (self._session.exact_rows or 1) if self._exact else 1
        eager = pieces or bool(self._request.stops)
        for _ in self._passes(self._sequences(started), least):
            shown = ""
            for row, one in enumerate(self._batch):
                if eager or one.finish is not None:
                    text = self._show(row)
                    shown = text if row == 0 else shown
            yield shown

    @property
    def count(self) -> int:
        """Tokens of all sequences so far."""
        return sum(len(one.tokens) for one in self._batch)

    def _sequences(self, started: float) -> Iterator[Decoding]:
        """The decodings in turn, each made when its place is free; kept in `_batch`."""
        seed = np.random.SeedSequence(self._request.seed)
        for row, prompt in enumerate(self._prompts):
            generator = np.random.default_rng((*_words(seed), row))
            self._batch.append(self._decoding(prompt, generator, started))
            yield self._batch[-1]

    def _passes(self, sequences: Iterator[Decoding], least: int) -> Iterator[None]:
        """Decode all, with at least so many rows a step; yields after every target pass."""
        first = list(islice(sequences, self._request.batch))
        self._account = Account(self._policy.pacer, self._policy.pace)
        # a branch adds up over other slots than a chain: 3e-8, which int8 activations amplify
        branches = self._session.row_invariant or not self._exact
        return decode(self._session, first, self._account, least, sequences, branches)

    def _decoding(self, prompt: Ints, generator: np.random.Generator, started: float) -> Decoding:
        request, policy = self._request, self._policy
        recipe = policy.recipe
        rule = make_rule(
            recipe.rule, request.sampling, generator, recipe.rule_options, self._resources
        )
        drafter = policy.drafter.fork()
        if hasattr(drafter, "sample_with"):
            drafter.sample_with(request.sampling, generator.spawn(1)[0])  # type: ignore[attr-defined]
        watch = None if policy.records is None else policy.records.watch
        return Decoding(
            prompt, request.max_new_tokens, self._ends, drafter, rule, watch, started=started
        )

    def _show(self, row: int) -> str:
        """Read a sequence's new tokens as text; a stop string ends it at the completing token."""
        one, transcript = self._batch[row], self._transcripts[row]
        if transcript is None or self._read[row] < 0:
            return ""
        text = ""
        for place in range(self._read[row], len(one.tokens)):
            if one.finish == "eos" and place == len(one.tokens) - 1:
                break
            text += transcript.feed(one.tokens[place])
            if transcript.stopped:
                self._stop(one, place + 1)
                break
        self._read[row] = len(one.tokens)
        if one.finish is not None:
            text += transcript.close()
            if transcript.stopped and one.finish != "stop":
                self._stop(one, len(one.tokens))
            self._read[row] = -1
        return text

    def _stop(self, one: Decoding, count: int) -> None:
        del one.tokens[count:]
        one.finish, one.ended = "stop", time.perf_counter()

    def results(self) -> list[Result]:
        """The outcome of every sequence, once `run` is through."""
        session, used = self._session, self._policy
        results: list[Result] = []
        for one, transcript in zip(self._batch, self._transcripts, strict=True):
            assert one.finish is not None, "results are read after the run"
            alike = session.row_invariant or self._exact
            alone = one.drafted == 0 and len(self._batch) == 1
            lossless = used.recipe.lossless and one.rule.lossless and (alike or alone)
            story, account = self._story(one), self._account
            stats = measure(one, session.row_invariant, lossless, story, account)
            text = "" if transcript is None else transcript.text
            results.append(Result(text, list(one.tokens), one.finish, stats))
        return results

    def _story(self, one: Decoding) -> str:
        name = self._policy.recipe.drafter
        if one.drafter.rows < 2:
            return "plain: this recipe drafts nothing"
        kind = "fixed" if isinstance(self._policy.pacer, Fixed) else "goodput"
        why = "step costs unknown" if kind == "fixed" else "by expected tokens per millisecond"
        speculated = one.offered[0] if one.offered else 0
        mean = one.drafted / speculated if speculated else 0.0
        return (
            f"{kind}: {name} drafted in {speculated} of {one.steps} steps, {mean:.1f} tokens each, "
            f"the others plain ({why})"
        )


def _words(seed: np.random.SeedSequence) -> tuple[int, ...]:
    """The seed's entropy as words that a sequence's number can be added to."""
    return tuple(int(word) for word in seed.generate_state(4))
