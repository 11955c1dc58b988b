"""Plain decoding of the installed peers next to ours: same prompts, in turn, one table.

    python tests/bench/peers.py --checkpoint HF_FOLDER --bundle fp32=A.graft --bundle int4=B.graft \
        --prompts spec_bench_dev.jsonl [--count 5] [--tokens 128] [--threads 2] [--out FILE.md]

Each peer is optional: one that is not installed is listed as such. Every prompt is given to every
runner before the next prompt, and a runner's threads are let go to sleep before the next one's
turn. Rates are tokens after the first per second after the first; the table shows medians.
onnxruntime-genai's models are made by its own builder beside --work, once.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import Any

PAUSE = 0.05
"""Seconds between two turns: ONNX Runtime's idle threads spin for a while before they sleep."""
Runner = Callable[[list[int], int], tuple[list[int], float]]
"""(prompt ids, new tokens) -> (new ids, tokens per second after the first)."""


def ours(path: str, threads: int) -> Runner:
    import graftline

    engine = graftline.load(path, recipe="plain", threads=threads, prefix_cache=0)

    def run(ids: list[int], count: int) -> tuple[list[int], float]:
        result = engine.generate([ids], max_new_tokens=count, ignore_eos=True)[0]
        return result.tokens, result.stats.tokens_per_second

    return run


def genai(checkpoint: Path, precision: str, work: Path, threads: int) -> Runner:
    import onnxruntime_genai as og

    folder = work / f"genai-{og.__version__}-{precision}"
    if not (folder / "model.onnx").is_file():
        command = ["-m", "onnxruntime_genai.models.builder", "-i", checkpoint, "-o", folder]
        options = ["-p", precision, "-e", "cpu", "-c", work / "cache"]
        subprocess.run([sys.executable, *map(str, command + options)], check=True)
    config_file = folder / "genai_config.json"
    config = json.loads(config_file.read_text())
    config["model"]["decoder"]["session_options"]["intra_op_num_threads"] = threads
    config_file.write_text(json.dumps(config))
    model = og.Model(str(folder))

    def run(ids: list[int], count: int) -> tuple[list[int], float]:
        params = og.GeneratorParams(model)
        length = len(ids) + count
        params.set_search_options(do_sample=False, max_length=length, min_length=length)
        generator = og.Generator(model, params)
        generator.append_tokens(ids)
        new = []
        for step in range(count):
            generator.generate_next_token()
            if step == 0:
                began = time.perf_counter()
            new.append(int(generator.get_next_tokens()[0]))
        return new, (count - 1) / (time.perf_counter() - began)

    return run


def transformers(checkpoint: Path, threads: int) -> Runner:
    import torch
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(threads)
    model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32)

    @torch.no_grad()
    def run(ids: list[int], count: int) -> tuple[list[int], float]:
        out = model(torch.tensor([ids]), use_cache=True)
        new = [int(out.logits[0, -1].argmax())]
        began = time.perf_counter()
        while len(new) < count:
            out = model(torch.tensor([[new[-1]]]), past_key_values=out.past_key_values)
            new.append(int(out.logits[0, -1].argmax()))
        return new, (count - 1) / (time.perf_counter() - began)

    return run


def llama_cpp(file: Path, threads: int) -> Runner:
    from llama_cpp import Llama

    model = Llama(str(file), n_ctx=4096, n_threads=threads, verbose=False)

    def run(ids: list[int], count: int) -> tuple[list[int], float]:
        model.reset()
        stream = model.generate(ids, temp=0.0)
        new = [next(stream)]
        began = time.perf_counter()
        while len(new) < count:
            new.append(next(stream))
        return new, (count - 1) / (time.perf_counter() - began)

    return run


def openvino(folder: Path, threads: int) -> Runner:
    import numpy as np
    import openvino as ov
    import openvino_genai as og

    pipe = og.LLMPipeline(str(folder), "CPU", INFERENCE_NUM_THREADS=threads)

    def run(ids: list[int], count: int) -> tuple[list[int], float]:
        config = og.GenerationConfig()
        config.max_new_tokens, config.ignore_eos, config.do_sample = count, True, False
        out = pipe.generate(ov.Tensor(np.asarray([ids], np.int64)), config)
        return list(out.tokens[0]), 1000 / out.perf_metrics.get_tpot().mean

    return run


def prompts(file: Path, bundle: str, count: int) -> Iterator[list[int]]:
    """Ids of `count` questions spread over the categories, with the bundle's own chat template."""
    from graftline.runtimes.text.tokenizer import Tokenizer

    tokenizer = Tokenizer.from_folder(Path(bundle) / "tokenizer")
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    for row in rows[:: max(1, len(rows) // count)][:count]:
        yield tokenizer.encode(row["turns"][0])[:1024]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--bundle", action="append", required=True, metavar="DTYPE=PATH")
    parser.add_argument("--prompts", type=Path, required=True)
    parser.add_argument("--gguf", type=Path, help="for llama.cpp")
    parser.add_argument("--openvino", action="append", default=[], metavar="DTYPE=FOLDER")
    parser.add_argument("--count", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--work", type=Path, default=Path("~/.cache/graftline/peers").expanduser())
    parser.add_argument("--out", type=Path)
    parser.add_argument("--skip", action="append", default=[], help="a runner's name, or its start")
    given = parser.parse_args()
    given.work.mkdir(parents=True, exist_ok=True)
    bundles = dict(b.split("=", 1) for b in given.bundle)
    wanted: dict[str, Callable[[], Runner]] = {}
    for dtype, path in bundles.items():
        wanted[f"graftline {dtype}"] = lambda p=path: ours(p, given.threads)
        if dtype in ("fp32", "int4"):
            wanted[f"onnxruntime-genai {dtype}"] = lambda d=dtype: genai(
                given.checkpoint, d, given.work, given.threads
            )
    wanted["transformers fp32"] = lambda: transformers(given.checkpoint, given.threads)
    if given.gguf:
        wanted[f"llama.cpp {given.gguf.stem.rpartition('.')[2]}"] = lambda: llama_cpp(
            given.gguf, given.threads
        )
    for dtype, folder in (o.split("=", 1) for o in given.openvino):
        wanted[f"openvino-genai {dtype}"] = lambda f=folder: openvino(Path(f), given.threads)
    runners, missing = opened(wanted, tuple(given.skip))
    rates: dict[str, list[float]] = {name: [] for name in runners}
    texts: dict[str, list[list[int]]] = {name: [] for name in runners}
    for ids in prompts(given.prompts, next(iter(bundles.values())), given.count):
        for name, run in runners.items():
            time.sleep(PAUSE)
            tokens, rate = run(ids, given.tokens)
            rates[name].append(rate)
            texts[name].append(tokens)
            print(f"  {name}: {rate:.1f}", file=sys.stderr)
    table = report(rates, texts, missing, given)
    print(table)
    if given.out:
        given.out.write_text(table + "\n")


def opened(
    wanted: dict[str, Callable[[], Runner]], skip: tuple[str, ...]
) -> tuple[dict[str, Runner], list[str]]:
    runners: dict[str, Runner] = {}
    missing: list[str] = []
    for name, make in wanted.items():
        if skip and name.startswith(skip):
            continue
        try:
            runners[name] = make()
        except ImportError as error:
            missing.append(f"{name}: not installed ({error.name})")
    return runners, missing


def report(
    rates: dict[str, list[float]], texts: dict[str, list[list[int]]], missing: list[str], given: Any
) -> str:
    from graftline.runtimes.machine import machine

    names = [
        "graftline",
        "onnxruntime",
        "onnxruntime-genai",
        "transformers",
        "torch",
        "llama-cpp-python",
    ]
    versions = []
    for name in names:
        try:
            versions.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            continue
    lines = [
        f"{machine()}, {os.cpu_count()} cores, {given.threads} threads; {', '.join(versions)}; "
        f"{time.strftime('%Y-%m-%d')}; {given.count} prompts, {given.tokens} new tokens, greedy.",
        "",
        "| runner | tokens/s, median | ours / this one, median of pairs | same tokens as ours |",
        "|---|---|---|---|",
    ]
    for name, got in rates.items():
        mine = next((n for n in rates if n == f"graftline {name.split()[-1]}"), "graftline fp32")
        pairs = [a / b for a, b in zip(rates.get(mine, got), got, strict=True)]
        same = sum(a == b for a, b in zip(texts.get(mine, texts[name]), texts[name], strict=True))
        lines.append(f"| {name} | {median(got):.1f} | {median(pairs):.2f} | {same} of {len(got)} |")
    return "\n".join([*lines, *(f"\n{m}" for m in missing)])


if __name__ == "__main__":
    main()
