"""`graftline tune`: the trees and draft lengths that are fastest on this machine, for these
prompts."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from graftline.commands import libraries, screen
from graftline.commands.opening import open_engine
from graftline.commands.options.answering import Raw
from graftline.commands.options.arguments import BundleFolder
from graftline.commands.options.opening import Capacity, Corpus, Threads
from graftline.commands.options.printing import Json, Quiet
from graftline.commands.options.questions import PerGroup, TunePrompts
from graftline.commands.options.tuning import MostLoss, Precision, TuneRecipes, TuneTokens
from graftline.commands.questions import Question, read_questions, select
from graftline.errors import GraftlineError, RequestError
from graftline.files import told_size
from graftline.recipe import recipe as find_recipe

if TYPE_CHECKING:
    from collections.abc import Sequence

    from graftline.bundle.writer import Watch
    from graftline.commands.tune_route import Routed
    from graftline.recipe import Recipe
    from graftline.runtimes.engine import Engine
    from graftline.runtimes.request import Ints
    from graftline.runtimes.study.tuning import Tuning

ROUTES = "self-skip"
"""The drafter whose route is searched."""
STORES = ("token-recycling", "suffix", "prompt-lookup")


def tune(
    bundle: BundleFolder,
    prompts: TunePrompts = None,
    precision: Precision = False,
    most_loss: MostLoss = 8.0,
    recipes: TuneRecipes = "",
    max_new_tokens: TuneTokens = 128,
    per_group: PerGroup = None,
    corpus: Corpus = None,
    threads: Threads = None,
    capacity: Capacity = None,
    raw: Raw = False,
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

    self-skip, named alone, learns its route: which attentions and MLPs of which blocks drafts do
    without, by agreement with the answers per cost. BUNDLE is then made again with that route, and
    is as it was until that is done; what was measured is kept, and an interrupted search goes on.

    With --precision no prompts are read: every precision decodes in turn and reads a held-out text,
    the frontier of speed and perplexity is printed, and BUNDLE becomes a bundle of the fastest
    precision that loses no more than --most-loss. An error or Ctrl-C leaves BUNDLE as it was.

    Examples:

    `graftline tune smol.graft --precision --most-loss 5`

    `graftline tune smol.graft --prompts spec_bench.jsonl --per-group 5`

    `graftline tune skip.graft --prompts mine.jsonl --recipes self-skip`

    `graftline tune smol.graft --prompts mine.jsonl --recipes token-recycling --max-new-tokens 256`
    """
    if precision:
        _tune_precision(bundle, prompts, most_loss, threads, quiet, json)
        return
    if prompts is None:
        raise GraftlineError("tune needs --prompts FILE, or --precision")
    recipe_names = list(dict.fromkeys(n.strip() for n in recipes.split(",") if n.strip()))
    chosen = [find_recipe(name) for name in recipe_names]
    routes = any(one.drafter == ROUTES for one in chosen)
    if routes and len(chosen) > 1:
        raise GraftlineError(
            f"{ROUTES} makes the bundle again; tune it alone, and the others after"
        )
    questions = select(read_questions(prompts), per_group)
    with screen.steps(quiet) as watch:
        engine = open_engine(
            bundle, watch, recipe="plain", threads=threads, capacity=capacity, corpus=corpus,
            verify=False, prefix_cache=0, defaults=False,
        )  # fmt: skip
        ids = [_encoded(engine, question, raw, max_new_tokens) for question in questions]
        if routes:
            routed = _tune_route(bundle, engine, ids, max_new_tokens, watch)
            _show_route(bundle, routed, json)
            return
        plain, found = _tune(bundle, engine, ids, max_new_tokens, chosen, watch)
    _show(plain, found, json)


def _tune(
    path: Path, engine: Engine, prompts: list[Ints], limit: int, recipes: list[Recipe],
    watch: Watch,
) -> tuple[float, list[Tuning]]:  # fmt: skip
    """Tune `recipes` (none: all that can be), store what is faster, and return plain decoding's
    tokens per second with what each recipe learned."""
    import onnxruntime

    from graftline.bundle.reader import Bundle
    from graftline.runtimes.machine import costs_key
    from graftline.runtimes.measured import step_costs
    from graftline.runtimes.study.rehearsal import Rehearsal

    bundle = Bundle.open(path, verify=False)
    session: Any = engine.session  # `load` opened it as one of ONNX Runtime
    costs = step_costs(bundle, session, watch)
    if not recipes:
        drafts = ("draft-model",) if engine.resources.draft is not None else ()
        recipes = [find_recipe(name) for name in (*STORES, *drafts)]
    rehearsal = Rehearsal(session, costs, engine.resources, prompts, limit)
    found = [rehearsal.tune(each, watch) for each in recipes]
    key = costs_key(session.threads, onnxruntime.__version__)
    bundle.write_tuned(key, _merged(bundle.read_tuned(key), found))
    return 1e3 / costs.of(1), found


def _tune_route(
    path: Path, engine: Engine, prompts: list[Ints], limit: int, watch: Watch
) -> Routed:
    """Answer the prompts, and search the route by the answers."""
    import numpy as np

    from graftline.bundle.reader import Bundle
    from graftline.commands.tune_route import tune_route
    from graftline.runtimes.measured import step_costs

    bundle, session = Bundle.open(path, verify=False), engine.session
    costs = step_costs(bundle, cast("Any", session), watch)
    watch(f"routes: the target answers {len(prompts)} prompts")
    told: Any = engine.generate([p.tolist() for p in prompts], recipe="plain", max_new_tokens=limit)
    texts = [
        (np.asarray([*prompt, *answer.tokens], np.int64), len(prompt))
        for prompt, answer in zip(prompts, told, strict=True)
        if answer.tokens
    ]
    if not texts:
        raise RequestError("the model answers none of these prompts with a token; give others")
    threads: int = cast("Any", session).threads
    return tune_route(bundle, texts, costs, threads, watch)


def _show_route(bundle: Path, routed: Routed, json: bool) -> None:
    found, before = routed.found, routed.before
    if json:
        rows = {"agreement": found.agreement, "cost": found.cost, "value": found.value}
        screen.write_json({"skip": routed.skip, **rows, "changed": routed.changed})
        return
    told = f"agreement {found.agreement:.2f} at {found.cost:.2f} of a step"
    pays = f"{found.value:.2f} tokens per step's time, {before.value:.2f} with the route it had"
    print(f"--skip {routed.skip}: {told}; {pays}, plain 1")
    print(f"{bundle} has this route {'now' if routed.changed else 'already'}")


def _show(plain: float, found: list[Tuning], json: bool) -> None:
    if json:
        recipes = [{k: v for k, v in asdict(t).items() if k in _SHOWN} | _kept(t) for t in found]
        screen.write_json({"plain": plain, "recipes": recipes})
        return
    rows = [
        (t.recipe, t.steps, f"{t.before:.1f}", f"{t.after:.1f}", ", ".join(_kept(t)["kept"]) or "-")
        for t in found
    ]
    columns = ("recipe", "drafts#", "tokens/s before#", "after#", "kept")
    title = f"expected on this machine; plain: {plain:.1f} tokens/s"
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
        cells = f"{p.rate:.1f}", f"{p.perplexity:.2f}", more, told_size(p.size), place
        rows.append((p.name, *cells))
    columns = ("precision", "tokens/s#", "perplexity#", "% of fp32#", "weights#", "frontier")
    screen.console().print(screen.table("plain decoding on this machine", columns, rows))
    print(f"{bundle} is {found.kept.name}{' now' if found.changed else ' already'}")


_SHOWN = ("recipe", "steps", "before", "after")


def _kept(tuning: Tuning) -> dict[str, list[str]]:
    judge = ["judge"] if tuning.judge else []
    return {"kept": [*tuning.table, *tuning.lengths, *judge]}


def _encoded(engine: Engine, question: Question, raw: bool, limit: int) -> Ints:
    from graftline.runtimes.prompts import encode_prompt
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
