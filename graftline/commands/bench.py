"""`graftline bench`: recipes against plain decoding of the same engine."""

from __future__ import annotations

import json as json_format
import os
import platform
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from graftline.commands import libraries, screen
from graftline.commands.options import Capacity, Corpus, PerGroup, Prompts, Threads
from graftline.errors import GraftlineError, RequestError

if TYPE_CHECKING:
    from graftline.bundle.reader import Bundle
    from graftline.commands.figures import Comparison, Difference
    from graftline.runtimes.engine import Engine

SHOWN = 12
"""At most so many differing answers are explained."""


def bench(
    bundle: Annotated[Path, typer.Argument(metavar="BUNDLE", help="A bundle folder.")],
    prompts: Prompts,
    recipes: Annotated[
        str, typer.Option(help="Recipes, separated by commas; plain is always included.")
    ] = "plain,prompt-lookup,token-recycling",
    max_new_tokens: Annotated[int, typer.Option(help="Maximum tokens per answer.")] = 128,
    per_group: PerGroup = None,
    turns: Annotated[int, typer.Option(min=1, help="Maximum turns per conversation.")] = 1,
    repeat: Annotated[int, typer.Option(min=1, help="Runs per prompt; times are medians.")] = 1,
    threads: Threads = None,
    capacity: Capacity = None,
    corpus: Corpus = None,
    exact: Annotated[
        bool,
        typer.Option(
            "--exact", help="One kernel family for every step: exact at int8 and int4 too."
        ),
    ] = False,
    ignore_eos: Annotated[
        bool, typer.Option("--ignore-eos", help="Always generate --max-new-tokens tokens.")
    ] = False,
    raw: Annotated[bool, typer.Option("--raw", help="Do not apply the chat template.")] = False,
    temperature: Annotated[float, typer.Option(help="Sampling temperature; 0 is greedy.")] = 0.0,
    seed: Annotated[int, typer.Option(help="Random seed, for --temperature above 0.")] = 0,
    step: Annotated[
        str,
        typer.Option(help="Step of all recipes but plain: host, or fused where all support it."),
    ] = "host",
    interleaved: Annotated[
        bool,
        typer.Option(
            "--interleaved",
            help="Run all recipes at once, one pass of each in turn, so that a slowdown of the "
            "machine affects all of them alike.",
        ),
    ] = False,
    oracle: Annotated[
        bool,
        typer.Option("--oracle", help="Show acceptance beside the bound of any lossless rule."),
    ] = False,
    json: Annotated[Path | None, typer.Option(help="Write the results to this JSON file.")] = None,
) -> None:
    """Benchmark recipes against plain decoding: speed, MAT, and whether every token is the same.

    In one process, all recipes answer a prompt before the next prompt is read. MAT is the mean
    number of accepted tokens per target pass. Tokens per second count the time after the first
    token; `with prompt` includes the prompt's own pass. `predicted` is the speed that the
    controller expected of its choices, `controller` its share of the time.

    On a busy machine, `--interleaved` resolves differences of about 1 %: all recipes decode a
    prompt at once, each with its own caches, and the one with the fewest tokens makes the next
    pass.

    Examples:

    `graftline bench smol.graft --prompts spec_bench.jsonl --per-group 10`

    `graftline bench smol.graft --prompts mine.jsonl --recipes suffix --interleaved --json out.json`

    `graftline bench smol.graft --prompts mine.jsonl --temperature 0.7 --oracle`
    """
    if oracle and temperature == 0:
        raise RequestError(
            "--oracle compares acceptance probabilities; give a --temperature above 0"
        )
    from graftline.bundle.reader import Bundle
    from graftline.commands import acceptance
    from graftline.commands.comparison import compare
    from graftline.commands.figures import report
    from graftline.commands.questions import groups, read_questions, select
    from graftline.recipe import check_fusable, check_step, recipe
    from graftline.runtimes.load import load

    names = [name.strip() for name in recipes.split(",") if name.strip()]
    check_step(step)
    if step == "fused" and oracle:
        raise RequestError("--oracle records verification on the host; leave out --step fused")
    if step == "fused" and interleaved:
        raise RequestError(
            "a bundle has only one fused step; leave out --interleaved or --step fused"
        )
    for name in names:
        if step == "fused" and name != "plain":
            check_fusable(recipe(name))
        recipe(name)
    if json is not None and not json.absolute().parent.is_dir():
        raise GraftlineError(f"--json {json}: its folder does not exist")
    if json is not None and json.is_dir():
        raise GraftlineError(f"--json {json} is a folder; name a file in it")
    questions = select(read_questions(prompts), per_group)
    libraries.silence_onnxruntime()
    opened = Bundle.open(bundle, verify=False)
    options = {
        "max_new_tokens": max_new_tokens, "ignore_eos": ignore_eos, "raw": raw,
        "temperature": temperature, "seed": seed,
    }  # fmt: skip
    with screen.steps() as watch:
        watch(f"opening {bundle}")
        engine = load(
            bundle, threads=threads, capacity=capacity, exact=exact, corpus=corpus, watch=watch
        )
        found = compare(engine, questions, names, options, turns, repeat, watch, step, interleaved)
        records = acceptance.record(engine, questions, names, options, watch) if oracle else None
    shown = screen.console()
    for group in groups(questions):
        shown.print(_table(found, group))
    shown.print(_table(found, None))
    if records is not None:
        shown.print(acceptance.table(records))
    for difference in found.differences[:SHOWN] if temperature == 0 else ():
        print(_explained(opened, engine, difference, raw))
    if json is not None:
        figures = {
            "model": f"{opened.manifest.facts.source or opened.manifest.name} "
            f"({opened.manifest.dtype}, {opened.manifest.target})",
            "machine": machine(threads),
            "versions": _versions(),
            "temperature": temperature,
            "recipes": report(found, questions),
        }
        if step != "host":
            figures["step"] = step
        if interleaved:
            figures["interleaved"] = True
        if records is not None:
            figures["oracle"] = acceptance.report(records)
        json.write_text(json_format.dumps(figures, indent=1) + "\n", encoding="utf-8")


def _table(found: Comparison, group: str | None) -> Any:
    columns = (
        "recipe", "tokens/s#", "speed-up#", "median#", "MAT#", "identical#", "lossless",
        "with prompt#", "predicted#", "controller#",
    )  # fmt: skip
    rows: list[tuple[str, ...]] = []
    for name in found.recipes:
        row = found.row(name, group)
        rows.append(
            (
                name,
                f"{row.tokens_per_second:.1f}",
                f"{row.speedup:.2f}x",
                f"{row.median_speedup:.2f}x",
                f"{row.mat:.2f}",
                f"{found.agreeing(name, group)}/{row.prompts}",
                "yes" if found.lossless(name) else "no",
                f"{found.overall_speed(name, group):.1f} tok/s",
                "-" if row.predicted is None else f"{row.predicted:.1f} tok/s",
                f"{row.controller_share:.1%}",
            )
        )
    return screen.table(group or "overall", columns, rows)


def _explained(bundle: Bundle, engine: Engine, where: Difference, raw: bool) -> str:
    """How far apart the two best logits of the unmodified export are where the answers differ."""
    told = f"{where.recipe}, question {where.question}: differs from plain at token "
    told += f"{len(where.common)} ({where.other}, not {where.plain})"
    if bundle.without_source():
        return told
    import numpy as np

    from graftline.runtimes.ort.graph import export_logits
    from graftline.runtimes.request import encode_prompt

    facts = bundle.manifest.decoder
    ids = encode_prompt(where.prompt, engine.tokenizer, raw, facts.vocabulary)
    tokens = np.concatenate([ids, np.asarray(where.common, np.int64)])[None]
    best = np.sort(export_logits(bundle.graph("export"), tokens)[0, -1])[-2:]
    return f"{told}; the export's two best logits are {best[1] - best[0]:.2g} apart"


def machine(threads: int | None = None) -> str:
    """This machine in one line: processor, threads used (None: all) of those there are, system."""
    name = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        name = next(ln.split(":", 1)[1].strip() for ln in lines if ln.startswith("model name"))
    except (OSError, StopIteration):
        pass  # not Linux, or a kernel that names no model: the platform's name stands
    return f"{name}, {threads or os.cpu_count()} of {os.cpu_count()} threads, {platform.system()}"


def _versions() -> dict[str, str]:
    from graftline.bundle.manifest import tool_versions

    return {"python": platform.python_version(), **tool_versions()}
