"""`graftline run`: text as it comes."""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from graftline.commands import libraries, screen
from graftline.commands.options import Capacity, Corpus, Threads
from graftline.commands.texts import from_argument, from_stdin
from graftline.errors import RequestError
from graftline.recipe import recipe as find_recipe

if TYPE_CHECKING:
    from graftline.runtimes.result import Result, Stats


def run(
    bundle: Annotated[Path, typer.Argument(metavar="OUT", help="A bundle.")],
    prompt: Annotated[
        str, typer.Argument(metavar="PROMPT", help="The prompt; - reads it from stdin.")
    ],
    raw: Annotated[bool, typer.Option("--raw", help="Leave out the chat template.")] = False,
    recipe: Annotated[
        str | None, typer.Option(help="Runtime policy in place of the bundle's own.")
    ] = None,
    max_new_tokens: Annotated[int, typer.Option(help="Most tokens to generate.")] = 128,
    temperature: Annotated[float, typer.Option(help="0 is greedy.")] = 0.0,
    top_k: Annotated[int, typer.Option(help="Sample among the k likeliest; 0: all.")] = 0,
    top_p: Annotated[float, typer.Option(help="Sample among this share of probability.")] = 1.0,
    min_p: Annotated[
        float, typer.Option(help="Leave out tokens below this share of the likeliest.")
    ] = 0.0,
    repetition_penalty: Annotated[float, typer.Option(help="1 is off.")] = 1.0,
    seed: Annotated[int | None, typer.Option(help="Makes sampling repeatable.")] = None,
    stop: Annotated[
        list[str] | None, typer.Option(help="End before this text; may be repeated.")
    ] = None,
    ignore_eos: Annotated[
        bool, typer.Option("--ignore-eos", help="Go on past the end-of-text token.")
    ] = False,
    exact: Annotated[
        bool, typer.Option("--exact", help="Keep every step to one kernel family.")
    ] = False,
    threads: Threads = None,
    capacity: Capacity = None,
    corpus: Corpus = None,
    step: Annotated[
        str | None,
        typer.Option(help="host, or fused where the bundle was made with --step fused."),
    ] = None,
    stats: Annotated[bool, typer.Option("--stats", help="Print figures to stderr.")] = False,
    json: Annotated[
        bool, typer.Option("--json", help="Text, tokens and stats as JSON, at the end.")
    ] = False,
) -> None:
    """Generate from a bundle; the chat template is applied where the tokenizer has one.

    Examples:

    `graftline run smol.graft "Explain speculative decoding." --stats`

    `graftline run smol.graft - --max-new-tokens 400 < report.txt`

    `graftline run smol.graft "Once upon" --raw --temperature 0.7 --top-p 0.9 --seed 1 --json`
    """
    prompt = from_stdin() if prompt == "-" else from_argument(prompt, "the prompt")
    if not prompt:
        raise RequestError("the prompt is empty; give a text")
    if recipe is not None:
        find_recipe(recipe)
    libraries.silence_onnxruntime()
    from graftline.runtimes.load import load

    with screen.steps(quiet=not sys.stderr.isatty()) as watch:
        watch(f"opening {bundle}")
        engine = load(
            bundle,
            recipe=recipe,
            threads=threads,
            capacity=capacity,
            exact=exact,
            corpus=corpus,
            step=step,
            watch=watch,
        )
    with engine.stream(
        prompt,
        raw=raw,
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        repetition_penalty=repetition_penalty,
        seed=seed,
        stop=stop or (),
        ignore_eos=ignore_eos,
    ) as stream:
        for piece in stream:
            if not json:
                sys.stdout.write(piece)
                sys.stdout.flush()
        result = stream.result
    assert result is not None, "a stream that ended has a result"
    if json:
        screen.write_json(asdict(result))
    else:
        sys.stdout.write("\n")
    if stats:
        sys.stdout.flush()
        sys.stderr.write(_told(result))


def _told(result: Result) -> str:
    stats = result.stats
    depths = " ".join(f"{share:.2f}" for share in stats.accepted_per_depth) or "-"
    lines = (
        f"{len(result.tokens)} tokens, ended by {result.finish_reason}",
        f"{stats.tokens_per_second:.1f} tokens/s after the first, "
        f"first after {stats.time_to_first_token * 1e3:.0f} ms, {stats.seconds:.2f} s in all",
        f"{stats.steps} steps, MAT {stats.mat:.2f}, {stats.drafted} drafted, "
        f"accepted per depth {depths}",
        _exactness(stats),
        stats.controller,
    )
    return "".join(f"{line}\n" for line in lines if line)


def _exactness(stats: Stats) -> str:
    """What holds for these tokens, and what this engine can promise of others."""
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
