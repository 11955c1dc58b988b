"""How the compiler scales: a 70B Llama shape through export and every pass, and time over depth.

    python tests/bench/large.py [--out FILE.md]
    python tests/bench/large.py --laws     a 7B shape with its numeric laws, on seeded weights

Weights are fake: nothing may read them, so time and memory are the compiler's own. Each size runs
in a process of its own, so that its peak memory is its own too.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path
from statistics import median
from typing import Any

ROUNDS = 5


def one(layers: int) -> None:
    """Print seconds of export, of the passes, and the peak memory, as JSON."""
    from transformers import LlamaConfig

    from graftline import evaluate
    from graftline.build.compiled import compile_graph
    from graftline.build.pipelines import pipeline_of
    from graftline.models import fake_host

    evaluate.ORACLE_SHARE = 0.0  # the numeric laws would read the weights
    config = LlamaConfig(
        num_hidden_layers=layers, hidden_size=8192, num_attention_heads=64, num_key_value_heads=8,
        intermediate_size=28672, vocab_size=128256, max_position_embeddings=8192,
    )  # fmt: skip
    began = time.perf_counter()
    host = fake_host(config)
    exported = time.perf_counter()
    _, text = pipeline_of("prompt-lookup", None, "ort-cpu", "fp32", None)
    compiled = compile_graph(host.model, text, lambda line: None)
    done = time.perf_counter()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1 << 20)
    row = {"export": exported - began, "passes": done - exported, "peak": peak}
    print(json.dumps({**row, "nodes": len(compiled.lowered.graph)}))


def with_laws() -> None:
    """A 7B shape whose weights are drawn when they are read: time and memory of the laws too."""
    import onnx_ir as ir
    from transformers import LlamaConfig

    from graftline.build.compiled import compile_graph
    from graftline.build.pipelines import pipeline_of
    from graftline.law import summary
    from graftline.models import fake_host

    host = fake_host(LlamaConfig(max_position_embeddings=4096))  # its defaults are Llama-2-7B's
    for name, value in host.model.graph.initializers.items():
        if isinstance(value.const_value, ir.LazyTensor):
            value.const_value = drawn(name, value.const_value)
    began = time.perf_counter()
    _, text = pipeline_of("token-recycling", None, "ort-cpu", "fp32", None)
    compiled = compile_graph(host.model, text, print)
    seconds = time.perf_counter() - began
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1 << 20)
    print(f"{seconds:.0f} s, {peak:.1f} GB at the peak; laws: {summary(compiled.laws)}")


def drawn(name: str, like: Any) -> Any:
    """A seeded tensor of the same name, type and shape; of one axis: ones, as in norms."""
    import numpy as np
    import onnx_ir as ir

    def draw() -> ir.Tensor:
        shape = [int(d) for d in like.shape]
        if len(shape) == 1:
            return ir.Tensor(np.ones(shape, np.float32), name=name)
        random = np.random.default_rng(list(name.encode()))
        array = random.standard_normal(shape, dtype=np.float32)
        array *= 0.02
        return ir.Tensor(array, name=name)

    return ir.LazyTensor(draw, dtype=like.dtype, shape=like.shape, name=name)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--layers", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--laws", action="store_true", help="a 7B shape, its numeric laws included")
    given = parser.parse_args()
    if given.laws:
        return with_laws()
    if given.layers:
        return one(given.layers)
    rows: dict[int, list[dict[str, float]]] = {20: [], 80: []}
    for _ in range(ROUNDS):
        for layers, got in rows.items():
            command = [sys.executable, __file__, "--layers", str(layers)]
            out = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            got.append(json.loads(out.splitlines()[-1]))
    head = "| layers | export, s | all passes, s | peak memory, GB | nodes |"
    lines = [head, "|---|---|---|---|---|"]
    for layers, got in rows.items():
        mid = {k: median(r[k] for r in got) for k in got[0]}
        lines.append(
            f"| {layers} | {mid['export']:.1f} | {mid['passes']:.1f} | {mid['peak']:.2f} "
            f"| {mid['nodes']:.0f} |"
        )
    pairs = [b["passes"] / a["passes"] for a, b in zip(rows[20], rows[80], strict=True)]
    versions = ", ".join(f"{n} {importlib.metadata.version(n)}" for n in ("torch", "onnx-ir"))
    table = "\n".join(
        [
            f"Llama-70B shape, fake weights; {os.cpu_count()} cores; {versions}; "
            f"{time.strftime('%Y-%m-%d')}; medians of {ROUNDS} processes.",
            "",
            *lines,
            "",
            f"Passes, 80 layers over 20: {median(pairs):.2f}x",
        ]
    )
    print(table)
    if given.out:
        given.out.write_text(table + "\n")
    return None


if __name__ == "__main__":
    main()
