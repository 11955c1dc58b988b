"""Recipes measured in turn: every recipe answers a question before the next question is read, or
all of them answer it interleaved, one target pass of each in turn.
"""

from __future__ import annotations

import random
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import Any, Protocol

from graftline.commands.figures import PLAIN, Answer, Comparison, Difference
from graftline.commands.questions import Question

Message = dict[str, str]


class Forced(Protocol):
    """What is asked of `runtimes.study.forced.Forcing`."""

    answer: Sequence[int]
    """Tokens that the target is known to write."""


class Engine(Protocol):
    """What is asked of `runtimes.engine.Engine`."""

    def generate(self, prompt: Any, **options: Any) -> Any:
        """Generate for one prompt."""
        ...

    def passes(self, prompt: Any, **options: Any) -> Any:
        """Generate for one prompt, a pass at each `next`."""
        ...

    def force(self, recipe: str, forcing: Any, /) -> None:
        """Make drafts of a recipe as good as `forcing` says."""
        ...

    def sibling(self) -> Engine:
        """Another engine that may generate at the same time."""
        ...


@dataclass(frozen=True)
class Run:
    """One answer and its times, in seconds."""

    result: Any
    decode: float
    total: float


def compare(
    engine: Engine,
    questions: Sequence[Question],
    recipes: Sequence[str],
    options: Mapping[str, Any],
    turns: int = 1,
    repeat: int = 1,
    watch: Callable[[str], None] | None = None,
    step: str = "host",
    interleaved: bool = False,
    forced: Mapping[str, Forced] | None = None,
) -> Comparison:
    """Let every recipe, `plain` always among them, answer every question, in turn.

    With several turns the history is plain's own answers, so all recipes see the same prompts. The
    order of the recipes is drawn anew for every prompt: what ran before leaves its traces in the
    processor, so no recipe may always follow the same one. `step` is that of all recipes but plain.
    `interleaved`: all answer at once, the one with the fewest tokens making the next pass, so that
    what disturbs the machine disturbs all of them alike; each has its own caches, and the prompt
    is read once for all. `forced`: recipes whose drafts are made as good as that says; plain then
    answers every prompt once more, before all others, so that its tokens are known.
    """
    names = (PLAIN, *dict.fromkeys(r for r in recipes if r != PLAIN))
    found = Comparison(names, {name: [] for name in names})
    for name in names:
        few = {**options, "max_new_tokens": 8}
        engine.generate(questions[0].turns[0], recipe=name, step=_step(name, step), **few)
    engines = {name: engine.sibling() for name in names} if interleaved else {}
    for name, forcing in (forced or {}).items():
        engines.get(name, engine).force(name, forcing)
    asked = 0
    for number, question in enumerate(questions, 1):
        if watch is not None:
            watch(f"{number}/{len(questions)}: {question.group} {question.name}")
        history: list[Message] = []
        for turn in question.turns[:turns]:
            prompt: Any = turn
            if not options.get("raw"):
                prompt = [*history, {"role": "user", "content": turn}]
            if forced:
                answer = engine.generate(prompt, recipe=PLAIN, **options).tokens
                for forcing in forced.values():
                    forcing.answer = answer
            if interleaved:
                seeds = (f"{asked} {again}" for again in range(repeat))
                runs = [_interleaved(engines, prompt, options, seed) for seed in seeds]
                results = {name: [run[name] for run in runs] for name in names}
            else:
                results = _in_turn(engine, prompt, names, options, repeat, asked, step)
            asked += 1
            _keep(found, question, prompt, results)
            answer = results[PLAIN][0].result.text
            history += [
                {"role": "user", "content": turn},
                {"role": "assistant", "content": answer},
            ]
    return found


def _in_turn(
    engine: Engine,
    prompt: Any,
    names: Sequence[str],
    options: Mapping[str, Any],
    repeat: int,
    asked: int,
    step: str,
) -> dict[str, list[Run]]:
    results: dict[str, list[Run]] = {name: [] for name in names}
    for again in range(repeat):
        for name in random.Random(f"{asked} {again}").sample(names, len(names)):
            answer = engine.generate(prompt, recipe=name, step=_step(name, step), **options)
            stats = answer.stats
            decode = stats.seconds - stats.time_to_first_token
            results[name].append(Run(answer, decode, stats.seconds))
    return results


def _interleaved(
    engines: Mapping[str, Engine], prompt: Any, options: Mapping[str, Any], seed: str
) -> dict[str, Run]:
    """All answers at once; `total` has the time that the prompt took whoever read it first."""
    chance = random.Random(seed)
    going = {name: engines[name].passes(prompt, recipe=name, **options) for name in engines}
    found: dict[str, Run] = {}
    decode, counts = dict.fromkeys(going, 0.0), dict.fromkeys(going, 0)
    prompted = 0.0
    while going:
        name = min(going, key=lambda one: (counts[one], chance.random()))
        began = perf_counter()
        count = next(going[name], None)
        taken = perf_counter() - began
        if counts[name]:
            decode[name] += taken
        else:
            prompted = max(prompted, taken)
        if count is None:
            result = going.pop(name).result
            found[name] = Run(result, decode[name], prompted + decode[name])
        else:
            counts[name] = count
    return found


def _step(recipe: str, step: str) -> str:
    """Plain decoding drafts nothing, so there is nothing to fuse."""
    return "host" if recipe == PLAIN else step


def _keep(
    found: Comparison, question: Question, prompt: Any, results: Mapping[str, list[Run]]
) -> None:
    plain = tuple(results[PLAIN][0].result.tokens)
    for name, runs in results.items():
        tokens = tuple(runs[0].result.tokens)
        stats = [run.result.stats for run in runs]
        found.answers[name].append(
            Answer(
                group=question.group,
                tokens=tokens,
                steps=stats[0].steps,
                decode=statistics.median(run.decode for run in runs),
                total=statistics.median(run.total for run in runs),
                lossless=all(s.lossless for s in stats),
                stable=all(tuple(run.result.tokens) == tokens for run in runs),
                predicted=_median([s.predicted for s in stats]),
                controller=statistics.median(
                    s.controller_share * (s.seconds - s.time_to_first_token) for s in stats
                ),
            )
        )
        if tokens != plain:
            same = next(
                (i for i, (a, b) in enumerate(zip(plain, tokens, strict=False)) if a != b),
                min(len(plain), len(tokens)),
            )
            found.differences.append(
                Difference(
                    name, question.name, prompt, plain[:same], _at(plain, same), _at(tokens, same)
                )
            )


def _median(values: Sequence[float | None]) -> float | None:
    known = [v for v in values if v is not None]
    return statistics.median(known) if len(known) == len(values) else None


def _at(tokens: tuple[int, ...], place: int) -> int | None:
    return tokens[place] if place < len(tokens) else None
