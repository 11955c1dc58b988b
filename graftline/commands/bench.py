"""`graftline bench`: recipes against plain decoding of the same engine."""

from __future__ import annotations

import json as json_format
import os
import platform
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from graftline.commands import acceptance, screen
from graftline.commands.comparison import compare
from graftline.commands.decode import given, read_array, read_conditions, read_range, refuse
from graftline.commands.figures import PLAIN, report
from graftline.commands.opening import open_decoder, open_engine
from graftline.commands.options.arguments import BundleFolder
from graftline.commands.options.benchmark import Compared, Decoding, Figures, Method
from graftline.commands.options.once import Measured
from graftline.commands.options.opening import Exact, Resources
from graftline.commands.options.questions import Prompts
from graftline.commands.questions import Question, groups, read_questions, select
from graftline.errors import GraftlineError, RequestError
from graftline.files import replacing

if TYPE_CHECKING:
    from graftline.bundle.reader import Bundle
    from graftline.commands.figures import Comparison, Difference
    from graftline.runtimes.engine import Engine
    from graftline.runtimes.study.forced import Forcing
    from graftline.runtimes.study.records import Records

    Recorded = dict[str, Records]

SHOWN = 12
"""At most so many differing answers are explained."""


ONCE = ("bundle", "latents", "condition", "length", "value_range", "repeat", "threads", "seed",
        "json")  # fmt: skip
"""Parameters for bundles that run once."""
ONLY_ONCE = ("latents", "condition", "length", "value_range")
"""Those for no other."""


def bench(
    ctx: typer.Context,
    bundle: BundleFolder,
    prompts: Prompts = None,
    *,
    once: Measured,
    compared: Compared,
    resources: Resources,
    exact: Exact = False,
    decoding: Decoding,
    method: Method,
    json: Figures = None,
) -> None:
    """Benchmark recipes against plain decoding: speed, MAT, and whether every token is the same.

    In one process, all recipes answer a prompt before the next prompt is read. MAT is the mean
    number of accepted tokens per target pass. Tokens per second count the time after the first
    token; a recipe that leaves blocks of the model out shows its perplexity on held-out text beside
    plain's. `with prompt` includes the prompt's own pass. `predicted` is the speed that the
    controller expected of its choices, `controller` its share of the time.

    On a busy machine, `--interleaved` resolves differences of about 1 %: all recipes decode a
    prompt at once, each with its own caches, and the one with the fewest tokens makes the next
    pass.

    A bundle that runs once takes no prompts: latency by number of steps or in windows, peak memory
    of a process of its own, and, beside the most steps, the PSNR of fewer.

    Examples:

    `graftline bench smol.graft --prompts spec_bench.jsonl --per-group 10`

    `graftline bench smol.graft --prompts mine.jsonl --recipes suffix --interleaved --json out.json`

    `graftline bench smol.graft --prompts mine.jsonl --temperature 0.7 --oracle`

    `graftline bench smol.graft --prompts mine.jsonl --recipes eagle --force-acceptance 0.8,0.7`

    `graftline bench sampler.graft --latents noise.npy --condition text=text.npy --range -1,1`
    """
    told = given(ctx)
    threads, temperature = resources.threads, decoding.temperature
    if prompts is None:
        refuse([n for n in told if n not in ONCE], "is for decoders of text; it needs --prompts")
        _once(bundle, once, compared.repeat, threads, decoding.seed, json)
        return
    refuse([n for n in told if n in ONLY_ONCE], "is for bundles that run once, not for --prompts")
    names = [name.strip() for name in compared.recipes.split(",") if name.strip()]
    _check(names, method, temperature, json)
    rates = _rates(method, names, temperature)
    questions = select(read_questions(prompts), compared.per_group)
    options = {"max_new_tokens": compared.max_new_tokens, **asdict(decoding)}
    with screen.steps() as watch:
        engine = open_engine(
            bundle, watch, exact=exact, **asdict(resources), defaults=False,
            # in turn, everybody reads the prompt; interleaved, it is read once for all
            **({} if method.interleaved else {"prefix_cache": 0}),
        )  # fmt: skip
        forced = _forced(rates, names, decoding.seed)
        found = compare(
            engine, questions, names, options, compared.turns, compared.repeat or 1, watch,
            method.step, method.interleaved, forced,
        )  # fmt: skip
        nears = {name: engine.quality(name) for name in found.recipes}
        qualities = {name: near for name, near in nears.items() if near is not None}
        records = (
            acceptance.record(engine, questions, names, options, watch) if method.oracle else None
        )
    _show(found, questions, records)
    for name, near in qualities.items():
        print(f"{name}, not lossless: {near.words}")
    if forced:
        screen.console().print(acceptance.by_depth(forced))
    if temperature == 0:
        _explain(bundle, engine, found, decoding.raw)
    if json is not None:
        how: dict[str, Any] = {"temperature": temperature}
        how |= {"step": method.step} if method.step != "host" else {}
        how |= {"interleaved": True} if method.interleaved else {}
        how |= {"force_acceptance": list(rates)} if rates else {}
        reports = _reports(found, questions, records)
        for name, near in qualities.items():
            reports["recipes"][name]["quality"] = vars(near)
        _write(json, bundle, threads, how, reports)


def _check(names: list[str], method: Method, temperature: float, json: Path | None) -> None:
    """Raise GraftlineError where options contradict each other or name what does not exist."""
    from graftline.recipe import check_fusable, check_step, recipe

    if method.oracle and temperature == 0:
        raise RequestError(
            "--oracle compares acceptance probabilities; give a --temperature above 0"
        )
    check_step(method.step)
    if method.step == "fused" and method.oracle:
        raise RequestError("--oracle records verification on the host; leave out --step fused")
    if method.step == "fused" and method.interleaved:
        raise RequestError(
            "a bundle has only one fused step; leave out --interleaved or --step fused"
        )
    for name in names:
        found = recipe(name)
        if method.step == "fused" and name != "plain":
            check_fusable(found)
    _check_file(json)


def _check_file(json: Path | None) -> None:
    """Raise GraftlineError where --json names no file that can be written."""
    if json is not None and not json.absolute().parent.is_dir():
        raise GraftlineError(f"--json {json}: its folder does not exist")
    if json is not None and json.is_dir():
        raise GraftlineError(f"--json {json} is a folder; name a file in it")


def _once(
    path: Path,
    how: Measured,
    repeat: int | None,
    threads: int | None,
    seed: int,
    json: Path | None,
) -> None:
    """Benchmark a bundle that runs once. Raises GraftlineError."""
    from graftline.bundle.reader import Bundle
    from graftline.commands import once
    from graftline.facts import DecoderFacts

    _check_file(json)
    if isinstance(Bundle.open(path, verify=False).manifest.facts, DecoderFacts):
        raise RequestError(f"{path} is a decoder of text; give --prompts FILE.jsonl")
    if how.latents is not None and how.length is not None:
        raise RequestError("--length is of inputs that are drawn; leave it out, or --latents")
    between = None if how.value_range is None else read_range(how.value_range)
    array = None if how.latents is None else read_array(how.latents, "--latents")
    conditions = read_conditions(how.condition or ())
    with screen.steps(quiet=not sys.stderr.isatty()) as watch:
        engine = open_decoder(path, watch, threads)
        feed = once.feed_for(engine, array, conditions, how.length, seed)
        found = once.measured(engine, feed, repeat, seed, threads, between, watch)
    screen.console().print(once.table(found))
    if json is not None:
        _write(json, path, threads, {"seed": seed}, once.report(found))


def _rates(method: Method, names: list[str], temperature: float) -> tuple[float, ...]:
    """What --force-acceptance asks for; nothing where it is not given. Raises RequestError."""
    if method.force_acceptance is None:
        return ()
    from graftline.recipe import recipe
    from graftline.runtimes.study.forced import check_forcing, parse_rates

    rates = parse_rates(method.force_acceptance)
    drafting = [recipe(n) for n in names if n != PLAIN]
    check_forcing(drafting, temperature, method.step, method.oracle)
    return rates


def _forced(rates: tuple[float, ...], names: list[str], seed: int) -> dict[str, Forcing]:
    """By recipe, what makes its drafts that good."""
    if not rates:
        return {}
    from graftline.runtimes.study.forced import Forcing

    return {name: Forcing(rates, seed) for name in names if name != PLAIN}


def _show(found: Comparison, questions: list[Question], records: Recorded | None) -> None:
    """A table for each group of questions, one for all of them, and one of acceptance."""
    shown = screen.console()
    for group in (*groups(questions), None):
        shown.print(_table(found, group))
    if records is not None:
        shown.print(acceptance.table(records))


def _reports(
    found: Comparison, questions: list[Question], records: Recorded | None
) -> dict[str, Any]:
    oracle = {} if records is None else {"oracle": acceptance.report(records)}
    return {"recipes": report(found, questions), **oracle}


def _write(
    file: Path, bundle: Path, threads: int | None, how: dict[str, Any], reports: dict[str, Any]
) -> None:
    """What `--json` asks for: what was measured, where, how, and what was found."""
    from graftline.bundle.reader import Bundle

    manifest = Bundle.open(bundle, verify=False).manifest
    figures = {
        "model": f"{manifest.facts.source or manifest.name} ({manifest.dtype}, {manifest.target})",
        "machine": machine(threads),
        "versions": _versions(),
        **how,
        **reports,
    }
    with replacing(file) as rough:
        rough.write_text(json_format.dumps(figures, indent=1) + "\n", encoding="utf-8")


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


def _explain(path: Path, engine: Engine, found: Comparison, raw: bool) -> None:
    """Print where answers differ from plain's, and how close the choice was there."""
    from graftline.bundle.reader import Bundle

    bundle = Bundle.open(path, verify=False)
    for difference in found.differences[:SHOWN]:
        print(_explained(bundle, engine, difference, raw))


def _explained(bundle: Bundle, engine: Engine, where: Difference, raw: bool) -> str:
    """How far apart the two best logits of the unmodified export are where the answers differ."""
    told = f"{where.recipe}, question {where.question}: differs from plain at token "
    told += f"{len(where.common)} ({where.other}, not {where.plain})"
    if bundle.without_source():
        return told
    import numpy as np

    from graftline.runtimes.ort.graph import export_logits
    from graftline.runtimes.prompts import encode_prompt

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
