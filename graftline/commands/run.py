"""`graftline run`: generated text, printed as it is decoded."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import typer

from graftline.commands import screen
from graftline.commands.decode import check_given, decode
from graftline.commands.opening import open_engine
from graftline.commands.options.answering import Raw, Request, Shown
from graftline.commands.options.arguments import BundleFolder, Prompt
from graftline.commands.options.once import Decoded
from graftline.commands.options.opening import Exact, Recipe, Resources, RunStep
from graftline.commands.texts import (
    from_argument,
    from_file,
    from_stdin,
    read_tools,
    template_values,
)
from graftline.errors import RequestError
from graftline.recipe import recipe as find_recipe

if TYPE_CHECKING:
    from pathlib import Path

    from graftline.runtimes.counters import SpecDecode
    from graftline.runtimes.engine import Engine
    from graftline.runtimes.request import Options
    from graftline.runtimes.result import Result, Stats
    from graftline.runtimes.step_story import StepStory
    from graftline.runtimes.streams import Stream


def run(
    ctx: typer.Context,
    bundle: BundleFolder,
    prompt: Prompt = None,
    *,
    decoded: Decoded,
    raw: Raw = False,
    recipe: Recipe = None,
    request: Request,
    exact: Exact = False,
    resources: Resources,
    step: RunStep = None,
    shown: Shown,
) -> None:
    """Generate from a bundle; the chat template is applied where the tokenizer has one. A bundle
    that makes waveforms or images decodes `--latents` into the file `-o`.

    Examples:

    `graftline run smol.graft "Explain speculative decoding." --stats`

    `graftline run smol.graft - --max-new-tokens 400 < report.txt`

    `graftline run smol.graft "Once upon" --raw --temperature 0.7 --top-p 0.9 --seed 1 --json`

    `graftline run smol.graft "Repeat: to be or not to be" --explain --timeline answer.html`

    `graftline run qwen.graft "How warm is it in Oslo?" --tools tools.json --no-thinking`
    `graftline run smol.graft "Name a river and its length in km." --json-schema river.json`

    `graftline run smol.graft "Yes or no: is 7 a prime?" --regex "Yes|No" --logprobs 2 --json`

    `graftline run vae.graft --latents latents.npy -o image.png`

    `graftline run sampler.graft --latents noise.npy --steps 4 -o image.png`
    """
    check_given(ctx, decoded.latents)
    threads, answers = resources.threads, request.answers
    if decoded.latents is not None:
        decode(bundle, decoded.latents, decoded, answers.seed or 0, threads, shown.stats)
        return
    if prompt is None:
        raise RequestError("give a prompt, or --latents FILE.npy for a decoder of latents")
    prompt = from_stdin() if prompt == "-" else from_argument(prompt, "the prompt")
    if not prompt:
        raise RequestError("the prompt is empty; give some text")
    if recipe is not None:
        find_recipe(recipe)
    if not shown.json and (answers.logprobs is not None or answers.prompt_logprobs is not None):
        raise RequestError("log-probabilities are shown in JSON alone; add --json")
    told_of = shown.explain or shown.timeline is not None
    if told_of and answers.n > 1:
        raise RequestError("--explain and --timeline tell of one answer; leave out --n")
    said: Any = _said(request, raw)
    with screen.steps(quiet=not sys.stderr.isatty()) as watch:
        engine = open_engine(
            bundle, watch, recipe=recipe, threads=threads, capacity=resources.capacity,
            exact=exact, corpus=resources.corpus, step=step, prefix_cache=0,
            defaults=not request.sampling.no_defaults,
        )  # fmt: skip
    stories = engine.explain() if told_of else []
    if answers.n == 1:
        with engine.stream(prompt, **said) as stream:
            results = [_print_pieces(stream, quiet=shown.json)]
    else:
        results = _print_answers(engine.generate([prompt], **said), quiet=shown.json)
    if shown.json:
        told = [asdict(result) for result in results]
        screen.write_json(told[0] if answers.n == 1 else told)
    else:
        sys.stdout.write("\n")
    if told_of:
        sys.stdout.flush()
        _explain(stories, engine, results[0], shown.explain, shown.timeline)
    if shown.stats:
        sys.stdout.flush()
        sys.stderr.write("".join(_told(result) for result in results))


def _said(request: Request, raw: bool) -> Options:
    """What a request says, files read: of its sampling what differs from the checkpoint's own
    defaults. Raises RequestError for a file or a pair that cannot be read."""
    template, shaping, answers = request.template, request.shaping, request.answers
    said: Options = {
        "raw": raw, "presence_penalty": shaping.presence_penalty,
        "frequency_penalty": shaping.frequency_penalty,
        "no_repeat_ngram_size": shaping.no_repeat_ngram_size,
        "logit_bias": _biases(shaping.logit_bias or ()), "min_tokens": shaping.min_tokens,
        "json_schema": shaping.json_schema and from_file(shaping.json_schema),
        "regex": shaping.regex, "grammar": shaping.grammar and from_file(shaping.grammar),
        "seed": answers.seed, "n": answers.n, "stop": answers.stop or (),
        "stop_token_ids": answers.stop_token_id or (), "include_stop": answers.include_stop,
        "ignore_eos": answers.ignore_eos, "logprobs": answers.logprobs,
        "prompt_logprobs": answers.prompt_logprobs,
        "tools": template.tools and read_tools(template.tools),
        "enable_thinking": template.thinking,
        "template_args": template_values(template.template_arg or ()),
    }  # fmt: skip
    own = asdict(request.sampling)
    del own["no_defaults"]
    given: Any = {name: value for name, value in own.items() if value is not None}
    said.update(given)
    return said


def _explain(
    stories: Sequence[StepStory], engine: Engine, result: Result, text: bool, page: Path | None
) -> None:
    """Tell of the steps of an answer, on stderr and as a page."""
    from graftline.inspection.timeline import story_lines, write_timeline

    assert engine.tokenizer is not None, "a stream of text needs one"
    decode = engine.tokenizer.decode
    if text:
        sys.stderr.write("".join(f"{line}\n" for line in story_lines(stories, decode)))
    if page is not None:
        told = f"{engine.recipe.name}: {result.stats.controller}"
        title = f"{len(result.tokens)} tokens in {result.stats.steps} steps"
        write_timeline(stories, decode, title, told, page)
        sys.stderr.write(f"wrote {page}; open it in a browser\n")


def _biases(pairs: Sequence[str]) -> dict[int, float] | None:
    """`ID=BIAS` options as a table. Raises RequestError for what is not one."""
    found: dict[int, float] = {}
    for pair in pairs:
        token, _, bias = pair.partition("=")
        try:
            found[int(token)] = float(bias)
        except ValueError as error:
            raise RequestError(
                f"--logit-bias {pair}: use ID=BIAS, as 50256=-100 or 13=-inf"
            ) from error
    return found or None


def _print_answers(results: Result | list[Result], quiet: bool) -> list[Result]:
    """Print several answers, numbered, unless `quiet`."""
    assert isinstance(results, list), "a list of prompts was given"
    for place, result in enumerate(results, 1):
        if not quiet:
            between = "" if place == 1 else "\n\n"
            sys.stdout.write(f"{between}--- {place} of {len(results)} ---\n{result.text}")
    return results


def _print_pieces(stream: Stream, quiet: bool) -> Result:
    """Print text as it comes, unless `quiet`; the whole result at its end."""
    for piece in stream:
        if not quiet:
            sys.stdout.write(piece)
            sys.stdout.flush()
    assert stream.result is not None, "a stream that ended has a result"
    return stream.result


def _told(result: Result) -> str:
    stats = result.stats
    depths = " ".join(f"{share:.2f}" for share in stats.accepted_per_depth) or "-"
    lines = (
        f"{len(result.tokens)} tokens, ended by {result.finish_reason}",
        f"{stats.tokens_per_second:.1f} tokens/s after the first, "
        f"first after {stats.time_to_first_token * 1e3:.0f} ms, {stats.seconds:.2f} s in all",
        f"{stats.steps} steps, MAT {stats.mat:.2f}, {stats.drafted} drafted, "
        f"accepted per depth {depths}",
        _drafts(stats.spec_decode),
        _exactness(stats),
        stats.controller,
        _defaults(stats),
    )
    return "".join(f"{line}\n" for line in lines if line)


def _drafts(counts: SpecDecode) -> str:
    """What serving stacks report of drafts; nothing where there were none."""
    if not counts.num_drafts:
        return ""
    return (
        f"{counts.num_drafts} drafts of {counts.num_draft_tokens} tokens, "
        f"{counts.num_accepted_tokens} accepted, mean acceptance length "
        f"{counts.mean_acceptance_length:.2f}"
    )


def _defaults(stats: Stats) -> str:
    """What the checkpoint has chosen, if anything."""
    said = ", ".join(f"{name}={value}" for name, value in stats.defaults.items())
    return f"by the checkpoint's generation_config.json: {said} (--no-defaults)" if said else ""


def _exactness(stats: Stats) -> str:
    """Whether these tokens are exact, and whether the engine's tokens always are."""
    if stats.row_invariant:
        engine = "rows of this engine do not depend on each other (row-invariant)"
    else:
        engine = "rows of this engine depend on each other (not row-invariant)"
    if not stats.lossless:
        rest = "" if stats.row_invariant else ", so drafts may change tokens"
        return f"not lossless: these tokens may differ from plain decoding's; {engine}{rest}"
    if stats.row_invariant:
        return f"lossless: these tokens are plain decoding's; {engine}"
    if stats.drafted:
        return f"lossless: these tokens are exact by --exact; {engine}"
    return (
        f"lossless: nothing was drafted, so these tokens are plain decoding's; {engine}, "
        "so drafts may change tokens"
    )
