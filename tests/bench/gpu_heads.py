"""Part (c) of tests/bench/gpu_step.py: draft heads on a GPU, asked by the host or within the step.

Bundles are made on the machine with the GPU, for TensorRT builds there alone: with --smollm2, and a
--head for each head. A way that cannot be gone (no library, a head that no engine takes) is a row
that says why.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from graftline.build.optimize import optimize
from graftline.build.tensorrt.target import gpu_capability
from graftline.runtimes.load import load
from graftline.targets import CUDA
from tests.bench.gpu_sessions import Scale, rates
from tests.bench.gpu_timing import Budget, Table

Way = tuple[str, str, str]
"""A target, a precision, and where a step drafts."""
PROMPT = [{"role": "user", "content": "Write a Python function that sorts a list."}]


def ways() -> list[Way]:
    """Those of the GPU in this machine."""
    here = f"trt:sm{gpu_capability() or 90}"
    return [(CUDA, "fp16", "host"), (here, "bf16", "host"), (here, "bf16", "fused")]


def heads(
    checkpoint: Path,
    files: Sequence[Path],
    scale: Scale,
    budget: Budget,
    over: Sequence[Way] | None = None,
    prompt: Any = PROMPT,
    real: bool = True,
) -> Table:
    """A row for each head and each way: what it drafts and how fast, beside plain on that engine.
    """
    names = ("head", "target", "step", "MAT", "drafted", "tokens/s", "over plain", "plain's tokens")
    table = Table("draft heads: generation, greedy", names, budget)
    for file in files:
        for way in ways() if over is None else over:

            def measure(file: Path = file, way: Way = way) -> list[object]:
                return _measured(checkpoint, file, way, scale, prompt, real)

            table.row([file.name, way[0], way[2]], measure)
    return table


def _measured(
    checkpoint: Path, head: Path, way: Way, scale: Scale, prompt: Any, real: bool
) -> list[object]:
    target, dtype, step = way
    with TemporaryDirectory() as folder:
        bundle = optimize(
            checkpoint, Path(folder) / "b", head=str(head), target=target, dtype=dtype, step=step
        )
        engine = load(bundle.path, prefix_cache=0, step=step)
        recipes = {"plain": "host", bundle.manifest.recipe: step}
        found = rates(engine, prompt, scale.tokens, recipes, real)
    plain, drafted = found.values()
    same = "yes" if plain.last.tokens == drafted.last.tokens else "no"
    timed = [drafted.rate, drafted.rate / plain.rate] if real else [None, None]
    return [f"{drafted.last.stats.mat:.2f}", drafted.last.stats.drafted, *timed, same]
