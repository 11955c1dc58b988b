"""One prompt's generation: its sequence, its text, and what came of it."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from graftline.errors import RequestError
from graftline.runtimes.decoding import Decoding
from graftline.runtimes.defaults import Defaults
from graftline.runtimes.drafter import Drafter, is_paid, is_resumed
from graftline.runtimes.drafters.none import NoDrafts
from graftline.runtimes.grammar import Grammars
from graftline.runtimes.lane import Lane
from graftline.runtimes.logprobs import Logprobs
from graftline.runtimes.marks import Marks
from graftline.runtimes.policy import Policy
from graftline.runtimes.processors import Processor
from graftline.runtimes.request import Ints, Request
from graftline.runtimes.resources import Resources
from graftline.runtimes.result import Result, Usage, measure
from graftline.runtimes.rules import make_rule
from graftline.runtimes.rules.greedy import Greedy
from graftline.runtimes.session import Session
from graftline.runtimes.shaping import Shaper
from graftline.runtimes.text.tokenizer import Tokenizer, Transcript
from graftline.runtimes.verdict import Rule


@dataclass(frozen=True)
class Surroundings:
    """What all generations of an engine share."""

    session: Session
    tokenizer: Tokenizer | None
    ends: frozenset[int]
    resources: Resources
    grammars: Grammars
    defaults: Defaults = field(default_factory=Defaults)

    def alike(self, exact: bool) -> bool:
        """Whether a row's result depends on nothing but what it sees. Raises RequestError where
        `exact` cannot be had."""
        if exact and self.session.exact_rows is None:
            raise RequestError(
                "exact=True: at this precision a row's result depends on the rows beside it, so "
                "speculation cannot be exact; rebuild with --dtype fp32"
            )
        return exact or self.session.row_invariant


@dataclass(frozen=True)
class Asked:
    """One answer to a prompt, as it is asked for: under a request, by a policy, with random numbers
    of its own. `name`: the request's id."""

    prompt: Ints
    request: Request
    policy: Policy
    generator: np.random.Generator
    name: str


class Generation:
    """A prompt that is being answered. `exact` keeps every step to one kernel family: on a backend
    whose rows depend on how many go together, no step scores a single row, and none branches.

    `eager`: text is read at every step, and handed out piece by piece; else once it has ended,
    unless a stop string could end it earlier: between two steps the processor's caches are cold,
    and every call costs.
    """

    def __init__(
        self,
        around: Surroundings,
        asked: Asked,
        exact: bool,
        eager: bool = False,
        story: Callable[[Decoding], str] | None = None,
    ) -> None:
        self.id, prompt, request, policy = asked.name, asked.prompt, asked.request, asked.policy
        if request.stops and around.tokenizer is None:
            raise RequestError("this bundle has no tokenizer, so stop texts cannot be found")
        self._alike, session = around.alike(exact), around.session
        self._around, self._policy = around, policy
        self._request, self._generator = request, asked.generator
        tokenizer = around.tokenizer
        known = {t: None if tokenizer is None else tokenizer.special_id(t) for t in request.stops}
        texts = [text for text, special in known.items() if special is None]
        self._special = {token: text for text, token in known.items() if token is not None}
        stops = frozenset([*request.stop_token_ids, *self._special])
        self._transcript = tokenizer and Transcript(
            tokenizer, texts, request.include_stop, request.min_tokens
        )
        self._read = 0
        self._story = story
        self.pieces: deque[str] = deque()
        """Text that nobody has taken yet, where it is read eagerly."""
        ends = stops if request.ignore_eos else stops | around.ends
        started = time.perf_counter()
        grammar = around.grammars.of(request, len(prompt))
        limit = request.max_new_tokens
        limit = session.capacity - len(prompt) if limit is None else limit
        self.one = Decoding(
            prompt,
            limit,
            ends,
            NoDrafts(),
            Greedy(),
            None if policy.records is None else policy.records.watch,
            stops=stops,
            shaper=self._shaper(prompt, ends, [grammar] if grammar else []),
            grammar=grammar and grammar[1],
            logprobs=self._logprobs(),
            placeholders=session.facts.placeholders,
            least=(session.exact_rows or 1) if exact else 1,
            exact=exact,
            # a branch adds up over other slots than a chain: 3e-8, which int8 activations amplify
            branches=session.row_invariant or not exact,
            any_prefix=session.row_invariant and not exact,
            deadline=None if request.timeout is None else started + request.timeout,
            outfit=self._outfit,
            digest_with=self._digest if eager or texts else None,
            course=policy.course,
            started=started,
        )

    def _shaper(
        self, prompt: Ints, ends: frozenset[int], last: Sequence[tuple[str, Processor]]
    ) -> Shaper | None:
        """What shapes the target's logits; None where the request asks for nothing."""
        request, vocabulary = self._request, self._around.session.facts.vocabulary
        for token in request.logit_bias or ():
            if token >= vocabulary:
                raise RequestError(
                    f"logit_bias names the token id {token}; the vocabulary has ids 0 to "
                    f"{vocabulary - 1}"
                )
        known = frozenset(token for token in ends if token < vocabulary)
        processors = [*request.shaping.processors(len(prompt), known), *last]
        return Shaper(prompt, processors) if processors else None

    def _logprobs(self) -> Logprobs | None:
        """Where log-probabilities are noted; None where the request asks for none."""
        course, recipe = self._policy.course, self._policy.recipe.name
        if self._request.prompt_logprobs is not None and not (course is None or course.reads_whole):
            raise RequestError(
                f"prompt_logprobs: the recipe {recipe} reads prompts without some blocks of the "
                "model; leave prompt_logprobs out, or use the recipe plain"
            )
        request, vocabulary = self._request, self._around.session.facts.vocabulary
        for name in ("logprobs", "prompt_logprobs"):
            if (getattr(request, name) or 0) > vocabulary:
                raise RequestError(f"{name} is more than the vocabulary has, {vocabulary} tokens")
        if request.logprobs is None and request.prompt_logprobs is None:
            return None
        return Logprobs(request.logprobs, request.prompt_logprobs)

    def _outfit(self) -> tuple[Drafter, Rule]:
        """The drafter and the rule, made when there is a seat: a drafter may hold caches."""
        policy, request = self._policy, self._request
        recipe = policy.recipe
        rule = make_rule(
            recipe.rule, request.sampling, self._generator, recipe.rule_options,
            self._around.resources,
        )  # fmt: skip
        drafter = policy.drafter.fork()
        if hasattr(drafter, "sample_with"):
            drafter.sample_with(request.sampling, self._generator.spawn(1)[0])  # type: ignore[attr-defined]
        return drafter, rule

    @property
    def lane(self) -> Lane:
        """The sequences of its recipe."""
        return self._policy.lane

    def cancel(self) -> None:
        """End it within a step; its seat is free then."""
        self.one.cancelled = True

    def _digest(self) -> None:
        if text := self._show():
            self.pieces.append(text)

    def _show(self) -> str:
        """Read new tokens as text; a stop string ends the sequence at the completing token."""
        one, transcript = self.one, self._transcript
        if transcript is None or self._read < 0:
            return ""
        text = ""
        for place in range(self._read, len(one.tokens)):
            if one.finish and one.tokens[place] in one.ends and place == len(one.tokens) - 1:
                text += self._end(transcript, one.tokens[place])
                break
            text += transcript.feed(one.tokens[place])
            if transcript.stopped:
                self._stop(place + 1)
                break
        self._read = len(one.tokens)
        if one.done:
            text += transcript.close()
            if transcript.stopped and one.finish != "stop":
                self._stop(len(one.tokens))
            self._read = -1
        return text

    def _end(self, transcript: Transcript, token: int) -> str:
        """What is shown of the token that ended the text: a stop, where stops are kept."""
        if not self._request.include_stop or token not in self.one.stops:
            return ""
        if token not in self._special:
            return transcript.feed(token)
        return transcript.close() + transcript.add(self._special[token])

    def _stop(self, count: int) -> None:
        del self.one.tokens[count:]
        self.one.end("stop")

    def result(self) -> Result:
        """The outcome, once it has ended."""
        one, recipe = self.one, self._policy.recipe
        assert one.finish is not None, "results are read after the end"
        self._show()
        resumed = is_paid(one.drafter) and is_resumed(one.drafter)  # it writes the target's caches
        alone = one.drafted == 0 and not one.together and not resumed
        lossless = recipe.lossless and (self._alike or alone)
        invariant = self._around.session.row_invariant
        taken = self._around.defaults.taken(self._request)
        stats = measure(one, invariant, lossless, (self._story or self._told)(one), taken)
        text = "" if self._transcript is None else self._transcript.text
        noted = one.logprobs or Logprobs(None, None)
        return Result(
            text, list(one.tokens), one.finish, stats, self.id, self.usage,
            None if noted.chosen is None else noted.tokens[: len(one.tokens)],
            None if noted.prompted is None else noted.prompt,
        )  # fmt: skip

    @property
    def usage(self) -> Usage:
        """Tokens so far."""
        return Usage(len(self.one.prompt), len(self.one.tokens))

    def _told(self, one: Decoding) -> str:
        """What chose the drafts, and what came of it."""
        name, course = self._policy.recipe.drafter, self._policy.course
        if course is not None:
            return course.schedule.told()
        if not one.drafts:
            return "plain: this recipe drafts nothing"
        fixed = self._policy.control.costs is None
        speculated = one.offered[0] if one.offered else 0
        mean = one.drafted / speculated if speculated else 0.0
        told = (
            f"{'fixed' if fixed else 'goodput'}: {name} drafted in {speculated} of {one.steps} "
            f"steps, {mean:.1f} tokens each, the others plain"
        )
        return f"{told} (step costs unknown)" if fixed else told + _expected(one.spent or Marks())


def _expected(spent: Marks) -> str:
    """Why: what was expected of the steps."""
    if not spent.sequences:
        return ""
    accepted = spent.tokens / spent.sequences - 1.0
    return (
        f"; expected {accepted:.2f} accepted tokens a step, {spent.milliseconds / spent.steps:.1f} "
        f"ms a step, {spent.speedup or 1.0:.2f} times plain decoding"
    )


def generator(seed: int | None, row: int = 0, answer: int = 0) -> np.random.Generator:
    """The random numbers of an answer to the prompt at `row` of a call: all differ, and one seed
    gives the same ones again; the first answer has those of the only one."""
    words = tuple(int(word) for word in np.random.SeedSequence(seed).generate_state(4))
    return np.random.default_rng((*words, row, answer) if answer else (*words, row))
