"""`graftline run`: generated text, printed as it is decoded."""

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
    bundle: Annotated[Path, typer.Argument(metavar="BUNDLE", help="A bundle folder.")],
    prompt: Annotated[
        str, typer.Argument(metavar="PROMPT", help="The prompt; - reads it from stdin.")
    ],
    raw: Annotated[bool, typer.Option("--raw", help="Do not apply the chat template.")] = False,
    recipe: Annotated[
        str | None, typer.Option(help="Recipe to decode with, in place of the bundle's own.")
    ] = None,
    max_new_tokens: Annotated[int, typer.Option(help="Maximum tokens to generate.")] = 128,
    temperature: Annotated[float, typer.Option(help="Sampling temperature; 0 is greedy.")] = 0.0,
    top_k: Annotated[int, typer.Option(help="Sample from the k most likely tokens; 0: all.")] = 0,
    top_p: Annotated[
        float, typer.Option(help="Sample from the fewest tokens with this total probability.")
    ] = 1.0,
    min_p: Annotated[
        float, typer.Option(help="Drop tokens below this fraction of the top probability.")
    ] = 0.0,
    repetition_penalty: Annotated[
        float, typer.Option(help="Penalty on tokens that occurred before; 1 is off.")
    ] = 1.0,
    seed: Annotated[
        int | None, typer.Option(help="Random seed, for reproducible sampling.")
    ] = None,
    stop: Annotated[
        list[str] | None, typer.Option(help="Stop before this text; may be given more than once.")
    ] = None,
    ignore_eos: Annotated[
        bool, typer.Option("--ignore-eos", help="Continue past the end-of-text token.")
    ] = False,
    exact: Annotated[
        bool,
        typer.Option(
            "--exact", help="One kernel family for every step: exact at int8 and int4 too."
        ),
    ] = False,
    threads: Threads = None,
    capacity: Capacity = None,
    corpus: Corpus = None,
    step: Annotated[
        str | None,
        typer.Option(help="host, or fused if the bundle was built with --step fused."),
    ] = None,
    stats: Annotated[bool, typer.Option("--stats", help="Print statistics to stderr.")] = False,
    json: Annotated[
        bool, typer.Option("--json", help="Print JSON at the end: text, tokens and statistics.")
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
        raise RequestError("the prompt is empty; give some text")
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
