"""Does sampling cost acceptance? Tokens per target pass, greedy beside temperature 0.7.

    python tests/bench/sampled.py --bundle A.graft --prompts spec_bench_dev.jsonl --work mat.json
        [--recipes a,b] [--per-group 2] [--tokens 128] [--temperature 0.7] [--seeds 1,2,3]
        [--threads 2] [--corpus FOLDER]

MAT counts no time, so a busy machine does not matter much: it only enters by what the controller
sees of the host's work. A finished recipe is kept in --work and not measured again.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from graftline.commands.questions import Question, read_questions, select
from graftline.errors import GraftlineError
from graftline.recipe import recipe, recipes
from graftline.runtimes.engine import Engine
from graftline.runtimes.load import load
from graftline.runtimes.result import Result

MOST = 0.15
"""Share of the greedy MAT that sampling may cost."""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--bundle", required=True)
    parser.add_argument("--prompts", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--recipes", help="default: all lossless ones that draft")
    parser.add_argument("--per-group", type=int, default=2)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--temperature", type=float, default=0.7)
    parser.add_argument("--seeds", default="1,2,3")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--corpus", type=Path)
    given = parser.parse_args()
    lossless = [r.name for r in recipes() if r.lossless and r.drafter != "none"]
    names = given.recipes.split(",") if given.recipes else lossless
    questions = select(read_questions(given.prompts), given.per_group)
    heat, seeds = float(given.temperature), [int(seed) for seed in given.seeds.split(",")]
    state: dict[str, list[float]] = {}
    if given.work.is_file():
        state = json.loads(given.work.read_text())
    engine = load(given.bundle, threads=given.threads, corpus=given.corpus, recipe="plain")
    for name in names:
        key = f"{name} {len(questions)} {given.tokens} {heat} {given.seeds}"
        if key not in state:
            try:
                cold = mat(engine, name, questions, given.tokens, 0.0, 0)
                warm = [mat(engine, name, questions, given.tokens, heat, seed) for seed in seeds]
            except GraftlineError as error:
                print(f"{name}: {error}", file=sys.stderr)
                continue
            state[key] = [cold, *warm]
            given.work.write_text(json.dumps(state, indent=1) + "\n")
        print(line(name, state[key], heat), flush=True)


def mat(
    engine: Engine, name: str, questions: list[Question], tokens: int, heat: float, seed: int
) -> float:
    """Tokens per target pass over all questions."""
    made = steps = 0
    for question in questions:
        prompt = [{"role": "user", "content": question.turns[0]}]
        answer = engine.generate(
            prompt, recipe=recipe(name), max_new_tokens=tokens, temperature=heat, seed=seed
        )
        assert isinstance(answer, Result)
        made += len(answer.tokens) - 1
        steps += answer.stats.steps
    return made / steps


def line(name: str, found: list[float], heat: float) -> str:
    """A markdown row: greedy, the mean and the range of the seeds, and whether that is near."""
    cold, warm = found[0], found[1:]
    mean = sum(warm) / len(warm)
    verdict = "yes" if mean >= (1.0 - MOST) * cold else "**no**"
    span = f"{mean:.2f} ({min(warm):.2f} to {max(warm):.2f})"
    return f"| {name} | {cold:.2f} | {span} at {heat:g} | {mean / cold - 1:+.0%} | {verdict} |"


if __name__ == "__main__":
    main()
