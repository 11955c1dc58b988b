"""Drafted batches beside plain ones, by group of questions, in turn.

    python tests/bench/batches.py BUNDLE --prompts spec_bench_dev.jsonl [--recipe suffix] \
        [--sequences 4] [--questions 12] [--tokens 128] [--repeat 3]

Questions of one group go together, `--sequences` of them at a time, every batch first plain and
then with drafts; tokens per second of decoding alone (all prompts read, first tokens chosen), all
batches of a group together; medians of the repeats. Exits with 1 where a token differs.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
from collections import defaultdict
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import onnxruntime

import graftline

TURNS = ("writing", "roleplay", "reasoning", "math", "coding", "extraction", "stem", "humanities")
"""Categories that together are the group mt_bench."""


def main() -> int:
    """Print the table."""
    given = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    given.add_argument("bundle")
    given.add_argument("--prompts", type=Path, required=True)
    given.add_argument("--recipe", default="suffix")
    given.add_argument("--groups", default="")
    given.add_argument("--sequences", type=int, default=4)
    given.add_argument("--questions", type=int, default=12)
    given.add_argument("--tokens", type=int, default=128)
    given.add_argument("--repeat", type=int, default=3)
    asked = given.parse_args()
    engine = graftline.load(
        asked.bundle, recipe=asked.recipe, max_batch=asked.sequences, prefix_cache=0
    )
    groups = read(asked.prompts, engine, asked.questions)
    print(f"{platform.processor() or platform.machine()}, onnxruntime {onnxruntime.__version__}, ")
    print(f"graftline {graftline.__version__}, {asked.bundle}, {asked.sequences} sequences\n")
    print(f"| group | plain, tokens/s | {asked.recipe}, tokens/s | ratio |\n|---|---|---|---|")
    differ, whole = 0, dict.fromkeys(("plain", asked.recipe), (0.0, 0.0))
    for name in asked.groups.split(",") if asked.groups else groups:
        rates: dict[str, list[float]] = defaultdict(list)
        for _ in range(asked.repeat):
            sums = dict.fromkeys(whole, (0.0, 0.0))
            for first in range(0, len(groups[name]), asked.sequences):
                part = groups[name][first : first + asked.sequences]
                told = {r: decoded(engine, part, r, asked.tokens) for r in whole}
                differ += len({str(tokens) for *_, tokens in told.values()}) > 1
                for recipe, (count, seconds, _) in told.items():
                    sums[recipe] = sums[recipe][0] + count, sums[recipe][1] + seconds
            for recipe, (count, seconds) in sums.items():
                rates[recipe].append(count / seconds)
                whole[recipe] = whole[recipe][0] + count, whole[recipe][1] + seconds
        line(name, [median(rates[recipe]) for recipe in whole])
    line("all tokens", [count / seconds for count, seconds in whole.values()])
    print(f"\n{differ or 'no'} batches with other tokens than plain decoding's")
    return int(differ > 0)


def line(name: str, rates: list[float]) -> None:
    """One line of the table."""
    print(f"| {name} | {rates[0]:.1f} | {rates[1]:.1f} | {rates[1] / rates[0]:.2f} |", flush=True)


def read(path: Path, engine: Any, most: int) -> dict[str, list[list[int]]]:
    """First turns as ids, by group."""
    found: dict[str, list[list[int]]] = defaultdict(list)
    for text in path.read_text().splitlines():
        row = json.loads(text)
        group = "mt_bench" if row["category"] in TURNS else row["category"]
        if len(found[group]) < most:
            turn = [{"role": "user", "content": row["turns"][0]}]
            found[group].append(engine.tokenizer.encode(turn))
    return found


def decoded(
    engine: Any, prompts: list[list[int]], recipe: str, tokens: int
) -> tuple[float, float, list[list[int]]]:
    """Tokens decoded after all prompts were read, the seconds of it, and every answer."""
    began = perf_counter()
    results = engine.generate(prompts, max_new_tokens=tokens, recipe=recipe)
    taken = perf_counter() - began
    prompted = max(r.stats.time_to_first_token for r in results)
    stats = [r.stats for r in results]
    late = sum(s.tokens_per_second * max(0.0, s.seconds - prompted) for s in stats)
    return late, taken - prompted, [r.tokens for r in results]


if __name__ == "__main__":
    sys.exit(main())
