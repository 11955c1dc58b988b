"""The engine of an app: prompts in, text out, over one session; threads may share it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Unpack

import numpy as np

from graftline.errors import RequestError
from graftline.recipe import FUSED, Recipe
from graftline.runtimes.branches import check_branches, decode_branches
from graftline.runtimes.chat import Chat
from graftline.runtimes.control.costs import Costs
from graftline.runtimes.counters import EngineStats
from graftline.runtimes.decoding import Decoding
from graftline.runtimes.defaults import Defaults
from graftline.runtimes.fused import FusedStep, check_drafter, check_fused, decode_fused, plan_for
from graftline.runtimes.fused import story as fused_story
from graftline.runtimes.generation import Asked, Generation, Surroundings, generator
from graftline.runtimes.grammar import Grammars
from graftline.runtimes.names import Names
from graftline.runtimes.policies import Policies
from graftline.runtimes.prefix_cache import PrefixCache
from graftline.runtimes.prompts import encode_prompt, split_prompts
from graftline.runtimes.request import (
    Ids,
    Ints,
    Message,
    Options,
    Prompt,
    Prompts,
    Request,
    options_each,
    read_options,
)
from graftline.runtimes.resources import Resources
from graftline.runtimes.result import Result
from graftline.runtimes.sampling import Sampling
from graftline.runtimes.scheduler import SEATS, Scheduler
from graftline.runtimes.session import Session, check_fits
from graftline.runtimes.step_story import StepStory
from graftline.runtimes.streams import Events, Passes, Stream, Submitted
from graftline.runtimes.study.forced import Forcing
from graftline.runtimes.study.perplexity import HELD_OUT
from graftline.runtimes.study.quality import Quality, quality
from graftline.runtimes.study.records import Records
from graftline.runtimes.task import Task
from graftline.runtimes.text.tokenizer import Tokenizer, end_tokens


class Engine:
    """Generates text. `costs` are the measured step costs (None: drafts are of a fixed size)."""

    def __init__(
        self,
        session: Session,
        tokenizer: Tokenizer | None,
        generation_defaults: Mapping[str, Any],
        recipe: Recipe,
        costs: Costs | None,
        exact: bool = False,
        resources: Resources | None = None,
        fused: Callable[[], FusedStep] | None = None,
        step: str = "host",
        twin: Callable[[], tuple[Session, Resources]] | None = None,
        seats: int = SEATS,
        prefixes: PrefixCache | None = None,
        defaults: Defaults | None = None,
        origin: Callable[[], Engine] | None = None,
    ) -> None:
        self.session, self.tokenizer, self.recipe = session, tokenizer, recipe
        self.resources = resources or Resources()
        self.exact = exact
        """What `exact=None` means in a call."""
        self.step = step
        """What `step=None` means in a call."""
        self.defaults = defaults or Defaults()
        """What a request takes from the checkpoint where it says nothing."""
        self._fused, self._twin, self._origin = fused, twin, origin
        self._generation = generation_defaults
        ends = end_tokens(generation_defaults, tokenizer)
        grammars = Grammars(tokenizer, session.facts.vocabulary, ends)
        self._around = Surroundings(
            session, tokenizer, ends, self.resources, grammars, self.defaults
        )
        self._scheduler = Scheduler(session, seats, prefixes)
        own = None if costs is None else replace(costs)  # what steps show is this engine's
        self.policies = Policies(recipe, session, self.resources, own, self._scheduler)
        self._names = Names()
        self.policies.of(None)  # an unknown drafter, rule or option fails here, not at a call

    def generate(
        self,
        prompt: Prompts,
        options: Sequence[Options] | None = None,
        **common: Unpack[Options],
    ) -> Result | list[Result]:
        """Generate for one prompt, or for each of a list of prompts.

        A prompt is a text, a list of chat messages or a list of token ids; `Request` lists the
        options. Of several prompts each may have `options` of its own, a dict for each, before
        those of the call. With `n` answers a prompt the results are a list, those of a prompt
        together. What other threads ask at the same time is decoded in the same steps.
        Raises RequestError for a request that cannot be served.
        """
        prompts, many = split_prompts(prompt)
        each = options_each(common, options, len(prompts) if many else None)
        asked = self._asked(prompts, [self.request(own) for own in each])
        if self._fuses(asked):
            begun = self._fused_task(asked)
        else:
            begun = self._generations(asked)
            self._run(begun, asked[0].request.batch)
        results = [one.result() for one in begun]
        return results if many or len(results) > 1 else results[0]

    def cancel(self, request_id: str) -> bool:
        """End a request within a step, from any thread: its result has what there was until then.
        False where none of that id is under way."""
        return self._names.cancel(request_id)

    def stream(self, prompt: Prompts, **options: Unpack[Options]) -> Stream:
        """Generate for one prompt, handing out the text as it becomes certain.

        Takes what `generate` takes. The request takes its turn at once; it goes on when somebody
        waits, for a piece of it or for another request, and ends when the stream is closed or no
        longer referred to.
        """
        if self.tokenizer is None:
            raise RequestError("this bundle has no tokenizer, so there is no text to stream")
        return Stream(self._begun("stream", prompt, options, eager=True), self._scheduler)

    def passes(self, prompt: Prompt, **options: Unpack[Options]) -> Passes:
        """Generate for one prompt, one pass of the target at each `next`, for a caller that has
        other work between two."""
        return Passes(self._begun("passes", prompt, options, eager=False), self._scheduler)

    def submit(self, prompt: Prompt, **options: Unpack[Options]) -> Submitted:
        """Let one prompt take its turn, and do not wait for it."""
        return Submitted(self._begun("submit", prompt, options, eager=False), self._scheduler)

    def agenerate(self, prompt: Prompt, **options: Unpack[Options]) -> Events:
        """Generate for one prompt, for `async for`: an event for every step that added tokens, and
        one for the end. Takes what `generate` takes; steps are made on a thread that all
        coroutines share."""
        return Events(self._begun("agenerate", prompt, options, eager=True), self._scheduler)

    def chat(
        self,
        system: str | None = None,
        messages: Sequence[Message] = (),
        **options: Unpack[Options],
    ) -> Chat:
        """A conversation that keeps its messages, after `messages` and with `system` before all;
        `options` are those of every turn."""
        first: list[Message] = [] if system is None else [{"role": "system", "content": system}]
        return Chat(self, [*first, *messages], options)

    def encode(self, prompt: Prompt, **options: Unpack[Options]) -> Ints:
        """The ids that `generate` reads for a prompt, with these options: their number, say."""
        return self._ids(prompt, self.request(options))

    def request(self, options: Mapping[str, Any]) -> Request:
        """The request of these options, and of the checkpoint's defaults. Raises RequestError for
        an unknown one, and for a value that cannot be."""
        return read_options({**self.defaults.options, **options})

    def __reduce__(self) -> tuple[Callable[[], Engine], tuple[()]]:
        """Pickled, it is the path of its bundle and how it was loaded: whoever unpickles it loads
        it again, with caches of its own."""
        if self._origin is None:
            raise RequestError("this engine was not made by load, so it has no path to pickle")
        return self._origin, ()

    def stats(self) -> EngineStats:
        """Counts of all requests since the engine was loaded, those of siblings aside."""
        return self._scheduler.stats()

    def sibling(self) -> Engine:
        """Another engine over the same graphs and weights, with caches and requests of its own, and
        steps on the host; what recipes have learned in one, the other does not know. A prompt that
        one of them has read costs the other no more than a copy.

        Raises RequestError where the backend keeps one set of caches.
        """
        if self._twin is None:
            raise RequestError(
                "this backend has a single set of caches; load the bundle again (bench: leave out "
                "--interleaved)"
            )
        session, resources = self._twin()
        return Engine(
            session, self.tokenizer, self._generation, self.recipe, self.policies.costs,
            self.exact,
            resources, twin=self._twin, seats=self._scheduler.seats,
            prefixes=self._scheduler.prompts.prefixes, defaults=self.defaults, origin=self._origin,
        )  # fmt: skip

    def branches(
        self, prompt: Prompt, branches: Sequence[str | Ids], **options: Unpack[Options]
    ) -> list[Result]:
        """Continue one prompt in several ways at once, none of which reads the others.

        Each branch begins with a text or ids of its own; its result is what `generate` gives for
        the ids of the prompt and the branch, at about the cost of one of them. Nothing is drafted:
        the recipe is parallel-within-sequence (arXiv 2503.20533). Takes the options of `generate`
        but `recipe`, `batch` and `step`. Raises RequestError for what cannot be served.
        """
        for name in ("recipe", "batch", "step", "n", "prompt_logprobs"):
            if name in options:
                raise RequestError(f"branches takes no {name}: all decode together, undrafted")
        request = self.request({"recipe": "parallel-within-sequence", **options})
        shared = self._encode(prompt, request)
        parts = [self._branch(branch) for branch in branches]
        check_branches(self.session, len(shared), parts, request.max_new_tokens)
        told = f"branches: {len(parts)} in one sequence, a token of each per pass"
        self._names.check(request.request_id)
        name, policy = request.request_id or self._names.new(), self.policies.of(request.recipe)
        asked = [
            Asked(np.append(shared, part), request, policy, generator(request.seed, row), name)
            for row, part in enumerate(parts)
        ]
        begun = self._generations(asked, story=lambda one: told)
        ones = [one.one for one in begun]
        for one in ones:
            one.together = len(ones) > 1
        self._run_alone(ones, lambda: decode_branches(self.session, shared, ones, ones[0].least))
        return [one.result() for one in begun]

    def quality(self, wanted: str | Recipe) -> Quality | None:
        """How near a recipe that leaves blocks of the model out is to plain decoding, on held-out
        text; None for one that does not, and for a bundle without a tokenizer."""
        course, tokenizer = self.policies.of(wanted).course, self.tokenizer
        if course is None or tokenizer is None:
            return None
        text = tokenizer.encode_part(HELD_OUT.read_text(encoding="utf-8"))
        return self._scheduler.idle(lambda: quality(course, text))

    def explain(self) -> list[StepStory]:
        """From now on, why each step scored what it scored, and what came of it; the list grows
        with the steps of all sequences. Raises RequestError where steps are chosen in the graph."""
        if self.step == FUSED:
            raise RequestError(
                "a fused step chooses within its graph, so there is nothing to tell of it; use "
                "--step host"
            )
        stories: list[StepStory] = []
        self._scheduler.explain = lambda one, story: stories.append(story)
        return stories

    def record(self, wanted: str | Recipe, sampling: Sampling, most: int = 64) -> Records:
        """From now on keep the acceptance at drafted nodes of this recipe, sampled like that.

        Slow: whole distributions are looked at, and every step drafts, whether it pays or not.
        """
        return self.policies.record(wanted, sampling, most)

    def force(self, wanted: str | Recipe, forcing: Forcing) -> None:
        """From now on drafts of this recipe are as good as `forcing` says, whatever its engine or
        head says; one request at a time."""
        self.policies.force(wanted, forcing)

    def _branch(self, branch: str | Ids) -> Ints:
        if isinstance(branch, str) and self.tokenizer is not None:
            branch = self.tokenizer.encode_part(branch)
        return encode_prompt(branch, self.tokenizer, True, self.session.facts.vocabulary)

    def _asked(self, prompts: Sequence[Prompt], requests: Sequence[Request]) -> list[Asked]:
        """What a call asks for: `n` answers to each prompt under its request."""
        asked: list[Asked] = []
        for row, (prompt, request) in enumerate(zip(prompts, requests, strict=True)):
            ids, policy = self._encode(prompt, request), self.policies.of(request.recipe)
            self._names.check(request.request_id)
            name = request.request_id or self._names.new()
            # a prompt whose seed is its own gets what it gets alone
            row = row if request.seed == requests[0].seed else 0
            asked += [
                Asked(ids, request, policy, generator(request.seed, row, answer), name)
                for answer in range(request.n)
            ]
        return asked

    def _fuses(self, asked: Sequence[Asked]) -> bool:
        """Whether the steps of a call are each one call of the engine. Raises RequestError where
        they were to be and cannot."""
        if (asked[0].request.step or self.step) == "host":
            return False
        if self._fused is None:
            raise RequestError(
                "step='fused': this bundle has no fused step; rebuild it with --step fused, or use "
                "--step host"
            )
        for one in asked:
            check_fused(one.policy.recipe, one.request)
            if one.policy is not asked[0].policy or one.request.exact != asked[0].request.exact:
                raise RequestError(
                    "fused steps decode all prompts of a call alike; leave recipe and exact out of "
                    "options=[...], or use --step host"
                )
        return True

    def _generations(
        self,
        asked: Sequence[Asked],
        eager: bool = False,
        story: Callable[[Decoding], str] | None = None,
    ) -> list[Generation]:
        """The generations of a call, none of them begun, known by their names."""
        made: list[Generation] = []
        for one in asked:
            exact = self.exact if one.request.exact is None else one.request.exact
            made.append(Generation(self._around, one, exact, eager, story))
        self._names.add(made)
        return made

    def _begun(
        self, what: str, prompt: Prompts, options: Mapping[str, Any], eager: bool
    ) -> Generation:
        """The generation of one prompt, submitted."""
        request = self.request(options)
        prompts, many = split_prompts(prompt)
        if many or request.n > 1:
            raise RequestError(f"{what} takes one prompt and n=1; use generate for several")
        asked = self._asked(prompts, [request])
        if self._fuses(asked):
            return self._fused_task(asked, eager, wait=False)[0]
        (one,) = self._generations(asked, eager)
        self._scheduler.submit(one.one, one.lane)
        return one

    def _run(self, begun: Sequence[Generation], most: int | None) -> None:
        """Decode them, at most `most` at a time. Raises what ended one of them, and ends all."""
        ones, scheduler = [one.one for one in begun], self._scheduler
        try:
            for place, one in enumerate(begun):
                while most is not None and sum(not o.done for o in ones[:place]) >= most:
                    scheduler.step()
                scheduler.submit(one.one, one.lane)
            scheduler.finish(ones)
        finally:
            for one in ones:
                one.cancelled = not one.done

    def _fused_task(
        self, asked: Sequence[Asked], eager: bool = False, wait: bool = True
    ) -> list[Generation]:
        """The generations of a call whose steps are fused; through with, unless not to `wait`."""
        assert self._fused is not None, "see `_fuses`"
        step, request, policy = self._fused(), asked[0].request, asked[0].policy
        check_drafter(policy.recipe, step)
        exact = self.exact if request.exact is None else request.exact
        alike = self.session.row_invariant or not exact
        least = (self.session.exact_rows or 1) if exact else 1
        plan = plan_for(policy.drafter, step, self.policies.costs, least, alike)
        begun = self._generations(asked, eager, partial(fused_story, policy, plan))
        ones = [one.one for one in begun]
        for one in ones:
            one.together = len(ones) > 1
        most = min(request.batch or len(ones), self._scheduler.seats)
        decode = partial(
            decode_fused, self.session, self._scheduler.prompts, step, ones, plan, most
        )
        if wait:
            self._run_alone(ones, decode)
        else:
            self._scheduler.run_alone(Task(decode, ones))
        return begun

    def _run_alone(self, ones: Sequence[Decoding], decode: Callable[[], Iterator[None]]) -> None:
        """Decode in steps of another kind, for which the session must be theirs alone."""
        task = Task(decode, ones)
        self._scheduler.run_alone(task)
        try:
            self._scheduler.finish([task])
        finally:
            for one in ones:
                one.cancelled = not one.done

    def _encode(self, prompt: Prompt, request: Request) -> Ints:
        ids = self._ids(prompt, request)
        check_fits(self.session, len(ids), request.max_new_tokens)
        return ids

    def _ids(self, prompt: Prompt, request: Request) -> Ints:
        vocabulary = self.session.facts.vocabulary
        return encode_prompt(
            prompt, self.tokenizer, request.raw, vocabulary, request.template, request.answer_prefix
        )
