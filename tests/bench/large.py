"""How the compiler scales: a 70B Llama shape through export and every pass, and time over depth.

    python tests/bench/large.py [--out FILE.md]

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

ROUNDS = 5


def one(layers: int) -> None:
    """Print seconds of export, of the passes, and the peak memory, as JSON."""
    from transformers import LlamaConfig

    from graftline.compiled import compile_graph
    from graftline.models import fake_host
    from graftline.plan import pipeline_of

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


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--layers", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
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
