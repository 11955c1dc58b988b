"""Many requests on one engine: batches, arrivals, and the same one after the other.

    python tests/bench/serving.py BUNDLE --prompts spec_bench_dev.jsonl [--recipe plain] \
        [--tokens 128] [--batches 1,4,8,16] [--requests 64] [--repeat 3] [--peer GENAI_FOLDER]

Ragged real prompts in chat form; every count of sequences in turn, medians. `decode`: new tokens
per second while all of the batch decode, from when every prompt is read, over as many steps as
there are new tokens; `all` counts every new token per second, prompts included. Arrivals: Poisson,
at 0.8 of the rate at which the largest batch serves them; `first` is the time to the first token,
of which half and nine tenths are under. Tokens are compared with those of one at a time.

`--peer`: a model of onnxruntime-genai (its builder's folder, of the same checkpoint) decodes every
batch in turn with ours, its prompts filled up on the left to one length.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import threading
import time
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import onnxruntime

import graftline


def main() -> None:
    """Print the tables."""
    given = argparse.ArgumentParser(description=__doc__)
    given.add_argument("bundle")
    given.add_argument("--prompts", type=Path, required=True)
    given.add_argument("--recipe", default="plain")
    given.add_argument("--tokens", type=int, default=128)
    given.add_argument("--batches", default="1,4,8,16")
    given.add_argument("--requests", type=int, default=64)
    given.add_argument("--repeat", type=int, default=3)
    given.add_argument("--peer", type=Path)
    asked = given.parse_args()
    batches = [int(n) for n in asked.batches.split(",")]
    engine = graftline.load(
        asked.bundle, recipe=asked.recipe, max_batch=max(batches), prefix_cache=0
    )
    ids = read(asked.prompts, engine, max(asked.requests, max(batches)))
    options = {"max_new_tokens": asked.tokens, "ignore_eos": True}
    print(f"{platform.processor() or platform.machine()}, onnxruntime {onnxruntime.__version__}, ")
    print(f"graftline {graftline.__version__}, {asked.bundle}, {asked.recipe}\n")
    alone = [engine.generate(one, **options).tokens for one in ids[: max(batches)]]
    peer = Peer(asked.peer) if asked.peer else None
    found: dict[int, list[tuple[float, float]]] = {n: [] for n in batches}
    theirs: dict[int, list[tuple[float, float]]] = {n: [] for n in batches}
    for _ in range(asked.repeat):
        for count in batches:
            rates, same = batch(engine, ids[:count], options, alone)
            found[count].append(rates)
            assert same, f"a batch of {count} gives other tokens"
            if peer is not None:
                theirs[count].append(peer.batch(ids[:count], asked.tokens, alone))
    rates = {n: (median(d for d, _ in f), median(a for _, a in f)) for n, f in found.items()}
    print("| sequences | decode, tokens/s | of one | all, tokens/s |\n|---|---|---|---|")
    for count, (decode, every) in rates.items():
        print(f"| {count} | {decode:.1f} | {decode / rates[batches[0]][0]:.2f} | {every:.1f} |")
    if peer is not None:
        print(f"\n{peer.name}, in turn ({peer.alike:.0%} of its tokens are ours):\n")
        print("| sequences | decode | ours | all | ours |\n|---|---|---|---|---|")
        for count, each in theirs.items():
            decode, every = (median(pair[n] for pair in each) for n in (0, 1))
            mine = rates[count]
            print(f"| {count} | {decode:.1f} | {mine[0] / decode:.2f}x "
                  f"| {every:.1f} | {mine[1] / every:.2f}x |")  # fmt: skip
    arrivals(engine, ids[: asked.requests], options, rates[max(batches)][1], asked.tokens)


class Peer:
    """onnxruntime-genai, of the same checkpoint and threads."""

    def __init__(self, folder: Path) -> None:
        import onnxruntime_genai

        self.library, file = onnxruntime_genai, folder / "genai_config.json"
        config = json.loads(file.read_text())
        config["model"]["decoder"]["session_options"]["intra_op_num_threads"] = os.cpu_count()
        file.write_text(json.dumps(config))
        self.name = f"onnxruntime-genai {onnxruntime_genai.__version__}, {folder.name}"
        pad = config["model"]["pad_token_id"]
        self.pad = pad[0] if isinstance(pad, list) else pad
        self.model = onnxruntime_genai.Model(str(folder))
        self.hits = self.count = 0

    @property
    def alike(self) -> float:
        """The share of its tokens that are ours."""
        return self.hits / max(self.count, 1)

    def batch(
        self, prompts: list[list[int]], tokens: int, ours: list[list[int]]
    ) -> tuple[float, float]:
        """Tokens per second of decoding alone, and of all."""
        long = max(map(len, prompts))
        params = self.library.GeneratorParams(self.model)
        params.set_search_options(
            do_sample=False, batch_size=len(prompts), max_length=long + tokens,
            min_length=long + tokens,
        )  # fmt: skip
        rows = np.asarray([[self.pad] * (long - len(one)) + one for one in prompts], np.int32)
        began = time.perf_counter()
        generator = self.library.Generator(self.model, params)
        generator.append_tokens(rows)
        new = list[list[int]]()
        for step in range(tokens):
            generator.generate_next_token()
            new.append([int(token) for token in generator.get_next_tokens()])
            if not step:
                first = time.perf_counter()
        ended = time.perf_counter()
        for mine, theirs in zip(ours, zip(*new, strict=True), strict=False):
            self.hits += sum(a == b for a, b in zip(mine, theirs, strict=True))
            self.count += tokens
        decode = (tokens - 1) * len(prompts) / (ended - first)
        return decode, tokens * len(prompts) / (ended - began)


def read(path: Path, engine: Any, count: int) -> list[list[int]]:
    """Prompts as ids, questions of all groups in turn, again where there are too few."""
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    texts = [line["turns"][0] for line in lines]
    random.Random(0).shuffle(texts)
    texts = (texts * (count // len(texts) + 1))[:count]
    room = engine.session.capacity - 300
    return [engine.tokenizer.encode([{"role": "user", "content": t}])[-room:] for t in texts]


def batch(
    engine: Any, prompts: list[list[int]], options: dict[str, Any], alone: list[list[int]]
) -> tuple[tuple[float, float], bool]:
    """Tokens per second of decoding alone, and of all; and whether they are the right ones."""
    began = time.perf_counter()
    results = engine.generate(prompts, **options)
    taken = time.perf_counter() - began
    count = sum(len(r.tokens) for r in results)
    same = all(r.tokens == one for r, one in zip(results, alone, strict=False))
    return (decoding(engine, prompts, options), count / taken), same


def decoding(engine: Any, prompts: list[list[int]], options: dict[str, Any]) -> float:
    """New tokens per second of steps in which all of a batch decode: behind the last prompt."""
    endless = {**options, "max_new_tokens": None}
    others = [engine.submit(one, **endless) for one in prompts[:-1]]
    last = engine.passes(prompts[-1], **endless)
    next(last)
    steps = engine.explain()
    began = time.perf_counter()
    for _ in range(options["max_new_tokens"]):
        next(last)
    taken = time.perf_counter() - began
    for one in (*others, last):
        one.close()
    return sum(len(step.fresh) for step in steps) / taken


def arrivals(
    engine: Any, prompts: list[list[int]], options: dict[str, Any], rate: float, tokens: int
) -> None:
    """A thread for each request, started at its time; the same all at once beside it."""
    began = time.perf_counter()
    expected = [r.tokens for r in engine.generate(prompts, **options)]
    static = time.perf_counter() - began
    chance, at = random.Random(1), 0.0
    results: list[Any] = [None] * len(prompts)

    def ask(place: int) -> None:
        results[place] = engine.generate(prompts[place], **options)

    threads: list[threading.Thread] = []
    began = time.perf_counter()
    for place in range(len(prompts)):
        threads.append(threading.Thread(target=ask, args=(place,)))
        time.sleep(max(0.0, began + at - time.perf_counter()))
        threads[-1].start()
        at += chance.expovariate(0.8 * rate / tokens)
    for thread in threads:
        thread.join()
    taken = time.perf_counter() - began
    first = sorted(r.stats.time_to_first_token for r in results)
    count = sum(len(r.tokens) for r in results)
    same = sum(r.tokens == e for r, e in zip(results, expected, strict=True))
    print(
        f"\n{len(prompts)} arrivals over {at:.0f} s: {count / taken:.1f} tokens/s; all at once "
        f"{count / static:.1f}; first token: half within {first[len(first) // 2]:.2f} s, nine in "
        f"ten within {first[len(first) * 9 // 10]:.2f} s; {same} of {len(prompts)} alike"
    )


if __name__ == "__main__":
    main()
