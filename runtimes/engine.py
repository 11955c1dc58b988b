"""The engine of an app: prompts in, text out, over one session; threads may share it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, TypeVar, Unpack, cast

import numpy as np

from graftline.errors import RequestError
from graftline.recipe import Recipe, check_fusable, recipe
from graftline.runtimes.branches import BranchJob
from graftline.runtimes.control.costs import Costs
from graftline.runtimes.control.goodput import Goodput
from graftline.runtimes.control.pacer import Fixed, Pacer
from graftline.runtimes.control.paid import PaidGoodput
from graftline.runtimes.drafter import Drafter, is_paid
from graftline.runtimes.drafters import make_drafter
from graftline.runtimes.fused import FusedJob, FusedStep
from graftline.runtimes.job import Job, Policy
from graftline.runtimes.request import (
    Ids,
    Ints,
    Options,
    Prompt,
    Prompts,
    Request,
    encode_prompt,
    read_options,
    split_prompts,
)
from graftline.runtimes.resources import Resources
from graftline.runtimes.result import Result
from graftline.runtimes.rules import make_rule
from graftline.runtimes.sampling import Sampling
from graftline.runtimes.session import Session, room
from graftline.runtimes.streams import Passes, Stream
from graftline.runtimes.study.records import Records
from graftline.runtimes.study.tuned import tuned_prior
from graftline.runtimes.text.tokenizer import Tokenizer

J = TypeVar("J", bound=Job)


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
    ) -> None:
        self.session, self.tokenizer, self.recipe = session, tokenizer, recipe
        self.resources = resources or Resources()
        self.exact = exact
        """What `exact=None` means in a call."""
        self.step = step
        """What `step=None` means in a call."""
        self._fused, self._twin = fused, twin
        self._costs, self._defaults = costs, generation_defaults
        self._ends = end_tokens(generation_defaults, tokenizer)
        self._policies: dict[str, Policy] = {}
        self._lock = threading.Lock()
        self._holder: int | None = None
        self._policy(recipe)  # an unknown drafter, rule or option fails here, not at the first call

    def generate(self, prompt: Prompts, **options: Unpack[Options]) -> Result | list[Result]:
        """Generate for one prompt, or for each of a list of prompts as one batch.

        A prompt is a text, a list of chat messages or a list of token ids; `Request` lists the
        options. Raises RequestError for a request that cannot be served.
        """
        request = read_options(options)
        prompts, many = split_prompts(prompt)
        job = self._text_job([self._encode(prompt, request) for prompt in prompts], request)
        with self._held():
            for _ in job.run(pieces=False):
                pass
        results = job.results()
        return results if many else results[0]

    def stream(self, prompt: Prompts, **options: Unpack[Options]) -> Stream:
        """Generate for one prompt, handing out the text as it becomes certain.

        Takes what `generate` takes. The engine is held from the first piece to the last, or until
        the stream is closed.
        """
        request = read_options(options)
        prompts, many = split_prompts(prompt)
        if many:
            raise RequestError("stream takes one prompt; use generate for several")
        if self.tokenizer is None:
            raise RequestError("this bundle has no tokenizer, so there is no text to stream")
        job = self._text_job([self._encode(prompts[0], request)], request)
        return Stream(job, self._held())

    def passes(self, prompt: Prompt, **options: Unpack[Options]) -> Passes:
        """Generate for one prompt, one pass of the target at a time, for a caller that has other
        work between two. Takes what `generate` takes and holds the engine as `stream` does."""
        request = read_options(options)
        prompts, many = split_prompts(prompt)
        if many:
            raise RequestError("passes takes one prompt; use generate for several")
        return Passes(self._text_job([self._encode(prompts[0], request)], request), self._held())

    def sibling(self) -> Engine:
        """Another engine over the same graphs and weights, with caches and requests of its own:
        both may be generating at once. Its steps are on the host, and what recipes have learned in
        one, the other does not know.

        Raises RequestError where the backend keeps one set of caches.
        """
        if self._twin is None:
            raise RequestError(
                "this backend has a single set of caches; load the bundle again (bench: leave out "
                "--interleaved)"
            )
        session, resources = self._twin()
        return Engine(
            session, self.tokenizer, self._defaults, self.recipe, self._costs, self.exact,
            resources, twin=self._twin,
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
        for name in ("recipe", "batch", "step"):
            if name in options:
                raise RequestError(f"branches takes no {name}: all decode together, undrafted")
        request = read_options({"recipe": "parallel-within-sequence", **options})
        shared = self._encode(prompt, request)
        parts = [self._branch(branch) for branch in branches]
        wanted = len(shared) + sum(len(p) + request.max_new_tokens for p in parts)
        if not parts:
            raise RequestError("branches takes at least one branch, and there is none")
        if wanted > self.session.capacity:
            raise RequestError(
                f"{len(parts)} branches need {wanted} positions together, but "
                f"{room(self.session, 'give fewer branches', 'lower max_new_tokens')}"
            )
        job = self._job(BranchJob, [np.concatenate([shared, part]) for part in parts], request)
        job.shared = shared
        with self._held():
            for _ in job.run(pieces=False):
                pass
        return job.results()

    def record(self, wanted: str | Recipe, sampling: Sampling, most: int = 64) -> Records:
        """From now on keep the acceptance at drafted nodes of this recipe, sampled like that.

        Slow: whole distributions are looked at, and every step drafts, whether it pays or not.
        """
        policy = self._policy(wanted)
        records = Records(policy.recipe.rule, sampling, most)
        self._policies[policy.recipe.name] = replace(policy, pacer=Fixed(), records=records)
        return records

    def _branch(self, branch: str | Ids) -> Ints:
        if isinstance(branch, str) and self.tokenizer is not None:
            branch = self.tokenizer.encode_part(branch)
        return encode_prompt(branch, self.tokenizer, True, self.session.facts.vocabulary)

    def _text_job(self, prompts: list[Ints], request: Request) -> Job:
        """The job of a call: its steps on the host, or each in one call of the engine."""
        if (request.step or self.step) == "host":
            return self._job(Job, prompts, request)
        if self._fused is None:
            raise RequestError(
                "step='fused': this bundle has no fused step; rebuild it with --step fused, or use "
                "--step host"
            )
        check_fusable(self._policy(request.recipe).recipe)
        for name, off in (("top_k", 0), ("top_p", 1.0), ("repetition_penalty", 1.0)):
            if (value := getattr(request, name)) != off:
                raise RequestError(
                    f"{name}={value}: a fused step samples by temperature and min_p alone; use "
                    "--step host"
                )
        job = self._job(FusedJob, prompts, request)
        job.open, job.costs = self._fused, self._costs
        return job

    def _job(self, kind: type[J], prompts: list[Ints], request: Request) -> J:
        exact = self.exact if request.exact is None else request.exact
        policy = self._policy(request.recipe)
        return kind(
            self.session, self.tokenizer, self._ends, policy, prompts, request, exact,
            self.resources,
        )  # fmt: skip

    def _encode(self, prompt: Prompt, request: Request) -> Ints:
        facts, session = self.session.facts, self.session
        ids = encode_prompt(prompt, self.tokenizer, request.raw, facts.vocabulary)
        wanted = len(ids) + request.max_new_tokens
        if wanted > session.capacity:
            raise RequestError(
                f"{len(ids)} prompt tokens and {request.max_new_tokens} new ones need {wanted} "
                f"positions, but {room(session, 'shorten the prompt', 'lower max_new_tokens')}"
            )
        return ids

    def _policy(self, wanted: str | Recipe | None) -> Policy:
        chosen = self.recipe if wanted is None else wanted
        if isinstance(chosen, str):
            chosen = self.recipe if chosen == self.recipe.name else recipe(chosen)
        known = self._policies.get(chosen.name)
        if known is None or known.recipe != chosen:
            drafter = make_drafter(chosen.drafter, chosen.options, self.resources)
            make_rule(
                chosen.rule, Request().sampling, np.random.default_rng(0), chosen.rule_options,
                self.resources,
            )  # fmt: skip
            known = Policy(chosen, drafter, self._pacer(chosen, drafter))
            self._policies[chosen.name] = known
        return known

    def _pacer(self, chosen: Recipe, drafter: Drafter) -> Pacer:
        if self._costs is None:
            return Fixed()
        branching = drafter.branching and self.session.supports_trees
        if is_paid(drafter):
            return PaidGoodput(self._costs, drafter, branching)
        prior = tuned_prior(self.resources.tuned, chosen.name, drafter.prior)
        whole, lossy = getattr(drafter, "whole", False), not chosen.lossless
        return Goodput(self._costs, prior, branching, whole=whole, lossy=lossy)

    @contextmanager
    def _held(self) -> Generator[None]:
        """Hold the session; a thread that already streams from it would wait for itself."""
        if self._holder == threading.get_ident():
            raise RequestError(
                "this thread is streaming from the engine; finish or close that stream"
            )
        with self._lock:
            self._holder = threading.get_ident()
            try:
                yield
            finally:
                self._holder = None


def end_tokens(defaults: Mapping[str, Any], tokenizer: Tokenizer | None) -> frozenset[int]:
    """The ids that end a text: the generation defaults' and the tokenizer's own."""
    given: object = defaults.get("eos_token_id", ())
    listed = cast("list[object]", given if isinstance(given, (list, tuple)) else [given])
    ends = {token for token in listed if isinstance(token, int)}
    if tokenizer is not None and "eos_token" in tokenizer.special:
        own = tokenizer.id_of(tokenizer.special["eos_token"])
        ends |= set() if own is None else {own}
    return frozenset(ends)
