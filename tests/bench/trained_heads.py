"""Every kind of head that `graftline train` makes, at equal data and time, in one table.

    python tests/bench/trained_heads.py MODEL --prompts mine.jsonl --questions spec_bench_dev.jsonl
        --work FOLDER [--kinds medusa,hydra,eagle,eagle3] [--minutes 20] [--dtypes fp32,int8,int4]
        [--heads KIND=FOLDER] [--per-group 1] [--tokens 128] [--threads 2] [--out T.md]

Each kind is trained for so many minutes, its answers taken from graftline's cache as far as they
are there: train one kind first, or the first one pays for the data of all. A head that is there
already (--heads) is taken as it is. Then, on each precision, a bundle is built and its recipes
answer the questions interleaved with plain decoding; and once without a controller, every step
drafting 8 rows, for the tokens of a step. What is done is kept in --work and not done again,
so the table can be made in slices.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from graftline.commands.bench import machine
from graftline.commands.comparison import compare
from graftline.commands.questions import Question, groups, read_questions, select
from graftline.runtimes.engine import Engine
from graftline.runtimes.load import load
from graftline.runtimes.sampling import Sampling

RECIPES: dict[str, tuple[str, ...]] = {
    "medusa": ("medusa", "medusa-suffix"), "hydra": ("hydra", "hydra-suffix"),
    "eagle": ("eagle", "eagle-2", "eagle-suffix"), "eagle3": ("eagle-3", "eagle-3-suffix"),
    "fspad": ("fspad",), "ppd": ("ppd",), "hidden-transfer": ("hidden-transfer",),
}  # fmt: skip
"""By kind of head, the recipes that draft with it; its bundle is built with the last."""
CHAT = "mt_bench"
Entry = dict[str, Any]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("model")
    parser.add_argument("--prompts", type=Path, required=True)
    parser.add_argument("--questions", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--kinds", default="medusa,hydra,eagle,eagle3")
    parser.add_argument("--heads", action="append", default=[], metavar="KIND=FOLDER")
    parser.add_argument("--minutes", type=float, default=20.0)
    parser.add_argument("--dtypes", default="fp32,int8,int4")
    parser.add_argument("--per-group", type=int, default=1)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    kinds, dtypes = given.kinds.split(","), given.dtypes.split(",")
    if unknown := [kind for kind in kinds if kind not in RECIPES]:
        parser.error(f"--kinds {', '.join(unknown)}: there are {', '.join(RECIPES)}")
    made = dict(one.split("=", 1) for one in given.heads)
    questions = select(read_questions(given.questions), given.per_group)
    given.work.mkdir(parents=True, exist_ok=True)
    heads = {kind: head_of(kind, made.get(kind), given) for kind in kinds}
    found: dict[str, Entry] = {}
    for kind in kinds:
        for dtype in dtypes:
            found |= measured(kind, heads[kind], dtype, questions, given)
    text = table(heads, found, dtypes)
    print(text)
    if given.out:
        given.out.write_text(text + "\n")


def head_of(kind: str, folder: str | None, given: argparse.Namespace) -> Entry:
    """A head, trained unless it is there: what the trainer said of it, and its folder."""
    file = given.work / f"{kind}.json"
    if file.is_file():
        return json.loads(file.read_text())
    path = Path(folder) if folder else given.work / kind
    told: Entry = {"minutes": None, "acceptance": None, "tokens_per_step": None}
    if folder is None:
        told = json.loads(run(
            "train", kind, given.model, "--prompts", given.prompts, "-o", path,
            "--minutes", given.minutes, "--threads", given.threads, "--json",
        ))  # fmt: skip
    size = sum(one.stat().st_size for one in path.iterdir() if one.suffix != ".md")
    return keep(file, {**told, "path": str(path), "size": size})


def measured(
    kind: str, head: Entry, dtype: str, questions: list[Question], given: argparse.Namespace
) -> dict[str, Entry]:
    """By recipe and precision, the figures of a head."""
    file = given.work / f"{kind}-{dtype}-{len(questions)}x{given.tokens}.json"
    if file.is_file():
        return json.loads(file.read_text())
    bundle = given.work / f"{kind}-{dtype}.graft"
    names = RECIPES[kind]
    if not bundle.exists():
        run("optimize", given.model, "-o", bundle, "--head", head["path"], "--dtype", dtype,
            "--recipe", names[-1])  # fmt: skip
    engine, options = load(bundle, threads=given.threads), {"max_new_tokens": given.tokens}

    def shown(line: str) -> None:
        print(f"{kind} {dtype} {line}", file=sys.stderr)

    found = compare(engine, questions, names, options, watch=shown, interleaved=True)
    rows: dict[str, Entry] = {}
    for name in names:
        row, speeds = found.row(name), {g: found.row(name, g).speedup for g in groups(questions)}
        rows[f"{kind} {name} {dtype}"] = {
            **vars(row), "groups": speeds, "same": found.agreeing(name),
            "full": full(engine, name, questions, options),
            "machine": machine(given.threads), "date": time.strftime("%Y-%m-%d"),
        }  # fmt: skip
    return keep(file, rows)


def full(
    engine: Engine, name: str, questions: list[Question], options: dict[str, Any]
) -> dict[str, float]:
    """By group, tokens of a step where every step drafts 8 rows, whether it pays or not."""
    other, tokens, steps = engine.sibling(), dict[str, int](), dict[str, int]()
    other.record(name, Sampling(temperature=1.0))
    for one in questions:
        prompt = [{"role": "user", "content": one.turns[0]}]
        result = other.generate(prompt, recipe=name, **options)
        tokens[one.group] = tokens.get(one.group, 0) + len(result.tokens) - 1
        steps[one.group] = steps.get(one.group, 0) + result.stats.steps
    return {group: tokens[group] / steps[group] for group in tokens}


def table(heads: dict[str, Entry], found: dict[str, Entry], dtypes: list[str]) -> str:
    """One markdown row for each recipe of each head."""
    columns = ["head", "MB", "minutes", "held-out acceptance by depth", "recipe",
               "tokens a step of 8 rows: chat, all",
               *(f"{dtype}: all / {CHAT} / slowest group" for dtype in dtypes),
               "plain's"]  # fmt: skip
    lines = [f"| {' | '.join(columns)} |", f"|{'---|' * len(columns)}"]
    for kind, head in heads.items():
        for name in RECIPES[kind]:
            rows = [found[f"{kind} {name} {dtype}"] for dtype in dtypes]
            full = rows[0]["full"]
            cells = [
                kind, f"{head['size'] / 1e6:.1f}",
                "-" if head["minutes"] is None else f"{head['minutes']:.0f}",
                ", ".join(f"{share:.2f}" for share in head["acceptance"] or ()) or "-", name,
                f"{full.get(CHAT, float('nan')):.2f}, {sum(full.values()) / len(full):.2f}",
                *(speeds(row) for row in rows),
                ", ".join(f"{row['same']}/{row['prompts']}" for row in rows),
            ]  # fmt: skip
            lines.append(f"| {' | '.join(cells)} |")
    known = sorted({f"{row['machine']}, {row['date']}" for row in found.values()})
    return "\n".join([*lines, "", *known])


def speeds(row: Entry) -> str:
    """Speed over plain of all tokens, of chat, and of the slowest group."""
    slowest = min(row["groups"], key=lambda group: row["groups"][group])
    chat = row["groups"].get(CHAT)
    told = "-" if chat is None else f"{chat:.2f}x"
    return f"{row['speedup']:.2f}x / {told} / {row['groups'][slowest]:.2f}x {slowest}"


def run(*words: object) -> str:
    """A graftline command; its output. Its progress is shown."""
    command = [sys.executable, "-m", "graftline", *map(str, words)]
    print(" ".join(command[2:]), file=sys.stderr)
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


def keep(file: Path, what: Any) -> Any:
    """Write it in one move, so that a stop at any time leaves the file whole or not there."""
    fresh = file.with_suffix(".new")
    fresh.write_text(json.dumps(what, indent=1) + "\n")
    os.replace(fresh, file)
    return what


if __name__ == "__main__":
    main()
