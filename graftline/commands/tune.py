"""`graftline tune`: the trees and draft lengths that are fastest on this machine, for these
prompts."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from graftline.commands import libraries, screen
from graftline.commands.options import (
    Capacity,
    Corpus,
    Json,
    PerGroup,
    Quiet,
    Threads,
)
from graftline.errors import GraftlineError, RequestError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from graftline.commands.questions import Question
    from graftline.runtimes.engine import Engine
    from graftline.runtimes.request import Ints
    from graftline.runtimes.study.tuning import Tuning

STORES = ("token-recycling", "suffix", "prompt-lookup")


def tune(
    bundle: Annotated[Path, typer.Argument(metavar="BUNDLE", help="A bundle folder.")],
    prompts: Annotated[
        Path | None,
        typer.Option(help='Questions, one JSON a line: Spec-Bench\'s fields, or {"prompt": …}.'),
    ] = None,
    precision: Annotated[
        bool,
        typer.Option(
            "--precision", help="Measure speed and perplexity of every precision; keep the best."
        ),
    ] = False,
    most_loss: Annotated[
        float,
        typer.Option(
            min=0, metavar="PERCENT",
            help="With --precision: most that perplexity may be above that of fp32.",
        ),
    ] = 8.0,
    recipes: Annotated[
        str,
        typer.Option(
            help="Recipes to tune, separated by commas; default: token-recycling, suffix and "
            "prompt-lookup, and draft-model if the bundle has a draft engine."
        ),
    ] = "",
    max_new_tokens: Annotated[int, typer.Option(min=2, help="Maximum tokens per answer.")] = 128,
    per_group: PerGroup = None,
    corpus: Corpus = None,
    threads: Threads = None,
    capacity: Capacity = None,
    raw: Annotated[bool, typer.Option("--raw", help="Do not apply the chat template.")] = False,
    quiet: Quiet = False,
    json: Json = False,
) -> None:
    """Learn from your prompts which drafts are accepted, and store what is faster here.

    Answers the prompts greedily with every recipe and compares each draft with the answer, whether
    it was verified or not. From that it learns the tree with the most accepted tokens for
    token-recycling, the initial acceptance estimates of the other recipes without a draft model,
    and the networks behind the draft lengths specdec++ and speckv for a draft model. The step costs
    measured on this machine decide which is best. judge-decoding, if named, learns its judge head:
    a drafted token counts as correct if the target gives it at least a tenth of the probability of
    its best token.

    `before` and `after` are expected tokens per second at those costs; each half of the questions
    is evaluated with what the other half taught, and what is not faster is not stored. Generated
    tokens never change, except those that a judge accepts. The result is written to BUNDLE/tuned at
    the very end, and used whenever the bundle is opened on this machine with the same number of
    threads.

    With --precision no prompts are read: every precision decodes in turn and reads a held-out text,
    the frontier of speed and perplexity is printed, and BUNDLE becomes a bundle of the fastest
    precision that loses no more than --most-loss. An error or Ctrl-C leaves BUNDLE as it was.

    Examples:

    `graftline tune smol.graft --precision --most-loss 5`

    `graftline tune smol.graft --prompts spec_bench.jsonl --per-group 5`

    `graftline tune smol.graft --prompts mine.jsonl --recipes token-recycling --max-new-tokens 256`
    """
    if precision:
        _tune_precision(bundle, prompts, most_loss, threads, quiet, json)
        return
    if prompts is None:
        raise GraftlineError("tune needs --prompts FILE, or --precision")
    import onnxruntime

    from graftline.bundle.reader import Bundle
    from graftline.commands.questions import read_questions, select
    from graftline.recipe import recipe as find_recipe
    from graftline.runtimes.control.measure import costs_key
    from graftline.runtimes.load import load, step_costs
    from graftline.runtimes.study.rehearsal import Rehearsal

    asked = list(dict.fromkeys(name.strip() for name in recipes.split(",") if name.strip()))
    for name in asked:
        find_recipe(name)
    questions = select(read_questions(prompts), per_group)
    libraries.silence_onnxruntime()
    opened = Bundle.open(bundle, verify=False)
    with screen.steps(quiet) as watch:
        watch(f"opening {bundle}")
        engine = load(
            bundle, recipe="plain", threads=threads, capacity=capacity, corpus=corpus,
            verify=False, watch=watch,
        )  # fmt: skip
        costs = step_costs(opened, _session(engine), watch)
        if not asked:
            asked = [*STORES, *(["draft-model"] if engine.resources.draft is not None else [])]
        ids = [_encoded(engine, question, raw, max_new_tokens) for question in questions]
        rehearsal = Rehearsal(engine.session, costs, engine.resources, ids, max_new_tokens)
        found = [rehearsal.tune(find_recipe(name), watch) for name in asked]
        key = costs_key(_session(engine).threads, onnxruntime.__version__)
        opened.write_tuned(key, _merged(opened.read_tuned(key), found))
    if json:
        told = [{k: v for k, v in asdict(t).items() if k in _SHOWN} | _kept(t) for t in found]
        screen.write_json({"plain": 1e3 / costs.of(1), "recipes": told})
        return
    rows = [
        (t.recipe, t.steps, f"{t.before:.1f}", f"{t.after:.1f}", ", ".join(_kept(t)["kept"]) or "-")
        for t in found
    ]
    columns = ("recipe", "drafts#", "tokens/s before#", "after#", "kept")
    title = f"expected on this machine; plain: {1e3 / costs.of(1):.1f} tokens/s"
    screen.console().print(screen.table(title, columns, rows))


def _tune_precision(
    bundle: Path,
    prompts: Path | None,
    most_loss: float,
    threads: int | None,
    quiet: bool,
    json: bool,
) -> None:
    """Print the frontier and what was kept."""
    from graftline.commands.tune_precision import FULL, tune_precision

    if prompts is not None:
        raise GraftlineError("--precision reads no prompts; run tune once with each")
    libraries.silence_onnxruntime()
    with screen.steps(quiet) as watch:
        found = tune_precision(bundle, most_loss / 100, threads, watch)
    if json:
        points = [asdict(p) for p in found.points]
        kept = {"kept": found.kept.name, "changed": found.changed}
        screen.write_json({"precisions": points, **kept})
        return
    full = next(p.perplexity for p in found.points if p.name == FULL)
    rows: list[tuple[str, ...]] = []
    for p in found.points:
        more = f"{100 * (p.perplexity / full - 1):+.1f}"
        place = "kept" if p is found.kept else "yes" if p.best else "-"
        cells = f"{p.rate:.1f}", f"{p.perplexity:.2f}", more, screen.size(p.size), place
        rows.append((p.name, *cells))
    columns = ("precision", "tokens/s#", "perplexity#", "% of fp32#", "weights#", "frontier")
    screen.console().print(screen.table("plain decoding on this machine", columns, rows))
    print(f"{bundle} is {found.kept.name}{' now' if found.changed else ' already'}")


_SHOWN = ("recipe", "steps", "before", "after")


def _kept(tuning: Tuning) -> dict[str, list[str]]:
    judge = ["judge"] if tuning.judge else []
    return {"kept": [*tuning.table, *tuning.lengths, *judge]}


def _session(engine: Engine) -> Any:
    """The engine's session, which `load` opened as one of ONNX Runtime."""
    return engine.session


def _encoded(engine: Engine, question: Question, raw: bool, limit: int) -> Ints:
    from graftline.runtimes.request import encode_prompt
    from graftline.runtimes.session import room

    session = engine.session
    ids = encode_prompt(question.turns[0], engine.tokenizer, raw, session.facts.vocabulary)
    if len(ids) + limit > session.capacity:
        raise RequestError(
            f"question {question.name}: {len(ids)} prompt tokens and {limit} new ones need "
            f"{len(ids) + limit} positions, but {room(session, 'lower --max-new-tokens')}"
        )
    return ids


def _merged(known: dict[str, Any] | None, found: Sequence[Tuning]) -> dict[str, Any]:
    """What was stored, with the recipes tuned now in place of what they had."""
    table = dict(known or {})
    for tuning in found:
        table.pop(tuning.recipe, None)
        if tuning.table:
            table[tuning.recipe] = tuning.table
        if tuning.tree:
            table["tree"] = list(tuning.tree)
        if tuning.lengths:
            table["lengths"] = tuning.lengths
        if tuning.judge:
            table["judge"] = tuning.judge
    return table
