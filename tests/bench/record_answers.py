"""Greedy answers of a real model with the candidates of every position: what `controllers.py`
replays. A line of OUT is one question.

    python tests/bench/record_answers.py BUNDLE --prompts spec_bench_dev.jsonl --out answers.jsonl
        [--per-group 4] [--tokens 128]
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np

from graftline.commands.questions import read_questions, select
from graftline.runtimes.engine import Engine
from graftline.runtimes.load import load


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--prompts", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--per-group", type=int, default=4)
    parser.add_argument("--tokens", type=int, default=128)
    given = parser.parse_args()
    engine = load(given.bundle, recipe="plain", verify=False, threads=1, costs=False)
    with given.out.open("w") as out:
        for question in select(read_questions(given.prompts), given.per_group):
            row = answer(engine, question.turns[0], given.tokens)
            out.write(json.dumps({"group": question.group} | row) + "\n")


def answer(engine: Engine, text: str, tokens: int) -> dict[str, object]:
    """`prompt` ids, `tokens` chosen greedily, and for each of them the best ids `topk` and the
    share of the first among them, `peak`, as the target gave them."""
    assert engine.tokenizer is not None
    session, ids = engine.session, engine.tokenizer.encode(text, False)
    session.reset(1)
    scores = session.prefill([np.asarray(ids, np.int64)])
    chosen: list[int] = []
    topk: list[list[int]] = []
    logits: list[list[float]] = []
    for _ in range(tokens):
        assert scores.topk_ids is not None
        assert scores.topk_logits is not None
        chosen.append(int(scores.argmax[0, -1]))
        topk.append(scores.topk_ids[0, -1].tolist())
        logits.append(np.round(scores.topk_logits[0, -1], 3).tolist())
        if chosen[-1] in engine.resources.ends:
            break
        scores = session.score(np.asarray([[chosen[-1]]]))
        session.commit([[0]])
    return {"prompt": list(ids), "tokens": chosen, "topk": topk, "logits": logits}


if __name__ == "__main__":
    main()
