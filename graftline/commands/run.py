"""`graftline run`: generated text, printed as it is decoded."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import typer

from graftline.commands import options as o
from graftline.commands import screen
from graftline.commands.decode import check_given, decode
from graftline.commands.opening import open_engine
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
    bundle: o.BundleFolder,
    prompt: o.Prompt = None,
    latents: o.Latents = None,
    condition: o.Conditions = None,
    out: o.Made = None,
    steps: o.RunSteps = None,
    sample_rate: o.SampleRate = None,
    value_range: o.ValueRange = "-1,1",
    raw: o.Raw = False,
    recipe: o.Recipe = None,
    max_new_tokens: o.NewTokens = None,
    temperature: o.OwnTemperature = None,
    top_k: o.TopK = None,
    top_p: o.TopP = None,
    min_p: o.MinP = None,
    repetition_penalty: o.RepetitionPenalty = None,
    no_defaults: o.NoDefaults = False,
    tools: o.Tools = None,
    thinking: o.Thinking = None,
    template_arg: o.TemplateArg = None,
    presence_penalty: o.PresencePenalty = 0.0,
    frequency_penalty: o.FrequencyPenalty = 0.0,
    no_repeat_ngram_size: o.NoRepeat = 0,
    logit_bias: o.Biases = None,
    min_tokens: o.LeastTokens = 0,
    json_schema: o.JsonSchema = None,
    regex: o.Regex = None,
    grammar: o.LarkGrammar = None,
    seed: o.Seed = None,
    n: o.Answers = 1,
    stop: o.Stop = None,
    stop_token_id: o.StopIds = None,
    include_stop: o.KeepStop = False,
    logprobs: o.Logprobs = None,
    prompt_logprobs: o.PromptLogprobs = None,
    ignore_eos: o.PastEnd = False,
    exact: o.Exact = False,
    threads: o.Threads = None,
    capacity: o.Capacity = None,
    corpus: o.Corpus = None,
    step: o.RunStep = None,
    stats: o.Stats = False,
    explain: o.Explain = False,
    timeline: o.Timeline = None,
    json: o.JsonResult = False,
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
    check_given(ctx, latents)
    if latents is not None:
        decode(
            bundle, latents, condition or (), out, seed or 0, steps, threads, sample_rate,
            value_range, stats,
        )  # fmt: skip
        return
    if prompt is None:
        raise RequestError("give a prompt, or --latents FILE.npy for a decoder of latents")
    prompt = from_stdin() if prompt == "-" else from_argument(prompt, "the prompt")
    if not prompt:
        raise RequestError("the prompt is empty; give some text")
    if recipe is not None:
        find_recipe(recipe)
    if not json and (logprobs is not None or prompt_logprobs is not None):
        raise RequestError("log-probabilities are shown in JSON alone; add --json")
    told_of = explain or timeline is not None
    if told_of and n > 1:
        raise RequestError("--explain and --timeline tell of one answer; leave out --n")
    asked: Options = {
        "raw": raw, "presence_penalty": presence_penalty, "frequency_penalty": frequency_penalty,
        "no_repeat_ngram_size": no_repeat_ngram_size, "logit_bias": _biases(logit_bias or ()),
        "min_tokens": min_tokens, "json_schema": json_schema and from_file(json_schema),
        "regex": regex, "grammar": grammar and from_file(grammar), "seed": seed, "n": n,
        "stop": stop or (), "stop_token_ids": stop_token_id or (), "include_stop": include_stop,
        "ignore_eos": ignore_eos, "logprobs": logprobs, "prompt_logprobs": prompt_logprobs,
        "tools": tools and read_tools(tools), "enable_thinking": thinking,
        "template_args": template_values(template_arg or ()),
    }  # fmt: skip
    own: dict[str, Any] = {
        "max_new_tokens": max_new_tokens, "temperature": temperature, "top_k": top_k,
        "top_p": top_p, "min_p": min_p, "repetition_penalty": repetition_penalty,
    }  # fmt: skip
    said: Any = {**asked, **{name: value for name, value in own.items() if value is not None}}
    with screen.steps(quiet=not sys.stderr.isatty()) as watch:
        engine = open_engine(
            bundle, watch, recipe=recipe, threads=threads, capacity=capacity, exact=exact,
            corpus=corpus, step=step, prefix_cache=0, defaults=not no_defaults,
        )  # fmt: skip
    stories = engine.explain() if told_of else []
    if n == 1:
        with engine.stream(prompt, **said) as stream:
            results = [_print_pieces(stream, quiet=json)]
    else:
        results = _print_answers(engine.generate([prompt], **said), quiet=json)
    if json:
        told = [asdict(result) for result in results]
        screen.write_json(told[0] if n == 1 else told)
    else:
        sys.stdout.write("\n")
    if told_of:
        sys.stdout.flush()
        _explain(stories, engine, results[0], explain, timeline)
    if stats:
        sys.stdout.flush()
        sys.stderr.write("".join(_told(result) for result in results))


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
