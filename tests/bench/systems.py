"""Every recipe on every precision: one row per published system, in one table.

    python tests/bench/systems.py --bundle fp32=A.graft --bundle int8=B.graft --bundle int4=C.graft
        --prompts spec_bench_dev.jsonl --work systems.json --out systems.md [--per-group 2]
        [--tokens 128] [--threads 2] [--recipes a,b] [--repeat 3] [--exact] [--corpus FOLDER]
        [--judge HEAD.safetensors] [--mask TOKEN] [--together 6]

So many recipes --together are measured against plain decoding of the same engine, interleaved: one
target pass of each in turn, the one with the fewest tokens first, so that a busy machine slows all
of them alike; with --repeat, times are medians. A finished recipe is kept in --work and measured
again only with other questions, tokens or repeats, so the table can be made in slices (stop it at
any time). Refused recipes are tried again.

What recipes need: bundles with --draft for the draft models (for pard and gad a draft that names a
mask token, or --mask), --corpus for rest and rasd; for specdec++ and speckv first `graftline tune
BUNDLE --recipes draft-model --prompts OTHER.jsonl`; for judge-decoding a bundle that returns hidden
states (--recipe judge-decoding), and its head by `graftline tune` or --judge.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

from graftline.commands.bench import machine
from graftline.commands.comparison import compare
from graftline.commands.figures import Comparison
from graftline.commands.questions import Question, groups, read_questions, select
from graftline.errors import GraftlineError
from graftline.recipe import Recipe, recipe, recipes
from graftline.runtimes.engine import Engine
from graftline.runtimes.load import load

Entry = dict[str, Any]
State = dict[str, Entry]
"""By "PRECISION RECIPE": MAT, speed-up, answers the same as plain's, and so on; or `refused`."""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--bundle", action="append", required=True, metavar="PRECISION=PATH")
    parser.add_argument("--prompts", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--recipes", help="default: all but plain")
    parser.add_argument("--per-group", type=int, default=2)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeat", type=int, default=1)
    parser.add_argument("--together", type=int, default=6)
    parser.add_argument("--exact", action="store_true")
    parser.add_argument("--corpus", type=Path)
    parser.add_argument("--judge", type=Path, metavar="HEAD")
    parser.add_argument("--mask", type=int, metavar="TOKEN")
    given = parser.parse_args()
    bundles = dict(b.split("=", 1) for b in given.bundle)
    names = given.recipes.split(",") if given.recipes else [r.name for r in recipes()]
    chosen = [recipe(name) for name in names if name != "plain"]
    questions = select(read_questions(given.prompts), given.per_group)
    state: State = json.loads(given.work.read_text()) if given.work.is_file() else {}
    for precision, path in bundles.items():
        setting = settings(given, len(questions))
        todo = [r for r in chosen if not setting.items() <= known(state, precision, r).items()]
        if todo:
            measure(precision, path, todo, questions, state, given)
    text = table(chosen, list(bundles), state)
    print(text)
    if given.out:
        given.out.write_text(text + "\n")


def settings(given: argparse.Namespace, prompts: int) -> Entry:
    """What a finished entry must have been measured with."""
    return {
        "prompts": prompts, "tokens": given.tokens, "repeat": given.repeat, "exact": given.exact,
    }  # fmt: skip


def known(state: State, precision: str, one: Recipe) -> Entry:
    return state.get(f"{precision} {one.name}", {})


class Completed:
    """An engine whose recipes get what their bundle lacks: a judge head, a draft's mask token."""

    def __init__(self, engine: Engine, head: Path | None, mask: int | None) -> None:
        self._engine, self._head, self._mask = engine, head, mask

    def _with(self, name: str) -> Recipe:
        one = recipe(name)
        if one.rule == "judge" and self._head is not None:
            return replace(one, rule_options={**one.rule_options, "head": str(self._head)})
        if one.drafter == "parallel-draft" and self._mask is not None:
            return replace(one, options={**one.options, "mask": self._mask})
        return one

    def generate(self, prompt: Any, **options: Any) -> Any:
        return self._engine.generate(prompt, recipe=self._with(options.pop("recipe")), **options)

    def passes(self, prompt: Any, **options: Any) -> Any:
        return self._engine.passes(prompt, recipe=self._with(options.pop("recipe")), **options)

    def sibling(self) -> Completed:
        return Completed(self._engine.sibling(), self._head, self._mask)


def measure(
    precision: str,
    path: str,
    todo: list[Recipe],
    questions: list[Question],
    state: State,
    given: argparse.Namespace,
) -> None:
    """Measure what is left to do on one bundle; every finished recipe is written at once."""
    engine = load(
        path, threads=given.threads, corpus=given.corpus, exact=given.exact, recipe="plain"
    )
    asking = Completed(engine, given.judge, given.mask)
    able: list[Recipe] = []
    for one in todo:
        refused = refusal(asking, one)
        if refused is None:
            able.append(one)
        else:
            state[f"{precision} {one.name}"] = {"refused": refused}
    for some in batched(able, given.together):
        began = time.perf_counter()
        names = [one.name for one in some]
        options = {"max_new_tokens": given.tokens}
        found = compare(asking, questions, names, options, repeat=given.repeat, interleaved=True)
        for name in names:
            state[f"{precision} {name}"] = entry(found, name, questions, given)
            told = state[f"{precision} {name}"]
            print(
                f"{precision} {name}: {told['speedup']:.2f}x, MAT {told['mat']:.2f}",
                file=sys.stderr,
            )
        save(given.work, state)
        print(f"{time.perf_counter() - began:.0f} s", file=sys.stderr)


def refusal(engine: Any, one: Recipe) -> str | None:
    """Why the recipe does not run on this engine; None when it does."""
    try:
        engine.generate("One, two,", recipe=one.name, max_new_tokens=2)
    except GraftlineError as error:
        return str(error)
    return None


def entry(
    found: Comparison, name: str, questions: list[Question], given: argparse.Namespace
) -> Entry:
    """What is kept of a measured recipe."""
    rows = {group: found.row(name, group) for group in groups(questions)}
    return {
        **vars(found.row(name)), "same": found.agreeing(name), "vouched": found.lossless(name),
        "groups": {group: row.speedup for group, row in rows.items()},
        "medians": {group: row.median_speedup for group, row in rows.items()},
        "forecasts": {
            group: row.predicted / row.tokens_per_second if row.predicted else None
            for group, row in rows.items()
        },
        "machine": machine(given.threads), "date": time.strftime("%Y-%m-%d"),
        **settings(given, len(questions)),
    }  # fmt: skip


def batched(them: list[Recipe], size: int) -> Iterator[list[Recipe]]:
    """Slices of at most that size, in order."""
    rest = iter(them)
    while some := list(islice(rest, size)):
        yield some


def save(file: Path, state: State) -> None:
    """Replace the file in one move, so that a stop at any time leaves the old or the new."""
    fresh = file.with_suffix(".new")
    fresh.write_text(json.dumps(state, indent=1) + "\n")
    os.replace(fresh, file)


def both(entry: Entry) -> str:
    """The speed-up of all tokens over all time, and the median over the prompts."""
    return f"{entry['speedup']:.2f}x / {entry['median_speedup']:.2f}x" if "mat" in entry else "-"


def slowest(done: list[Entry]) -> str:
    """The slowest group of all precisions, and the median over its prompts."""
    if not done:
        return "-"
    speeds = (
        (speed, e["medians"][group], group) for e in done for group, speed in e["groups"].items()
    )
    total, median, group = min(speeds)
    return f"{total:.2f}x {group} (median {median:.2f}x)"


def table(chosen: list[Recipe], precisions: list[str], state: State) -> str:
    """One markdown row per recipe; what was refused is said below."""
    head = ["system", "recipe", "lossless", "MAT", *precisions, "identical", "slowest group"]
    lines = [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    refused: list[str] = []
    for one in chosen:
        found = [known(state, precision, one) for precision in precisions]
        done = [entry for entry in found if "mat" in entry]
        refused += dict.fromkeys(f"{one.name}: {e['refused']}" for e in found if "refused" in e)
        cells = [
            one.system,
            one.name,
            "yes" if one.lossless else "no",
            f"{done[0]['mat']:.2f}" if done else "-",
            *(both(e) for e in found),
            ", ".join(f"{e['same']}/{e['prompts']}" if "mat" in e else "-" for e in found),
            slowest(done),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    machines = sorted({f"{e['machine']}, {e['date']}" for e in state.values() if "mat" in e})
    return "\n".join([*lines, "", *machines, *(f"- {line}" for line in refused)])


if __name__ == "__main__":
    main()
