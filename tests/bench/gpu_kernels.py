"""Part (a) of tests/bench/gpu_step.py: kernels against their meaning and the copy bandwidth.

TreeAttention has a file of its own, gpu_attention.py.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from graftline.plugins import PLUGINS
from graftline.plugins.launch import kernel, plan_for
from graftline.plugins.spec import Plugin, Values
from tests.bench.gpu_timing import Budget, Table, Timer
from tests.plugins.cases import Case, every_plugin, kv_commit, tree_attention, tree_verify
from tests.plugins.tensors import array, run_kernel, tensor

HEADS = (32, 8)
LIMITS = {torch.float16: 3e-3, torch.bfloat16: 2e-2}
"""Largest error of attention: norm of the difference over norm of the result."""
ROTATED = 256 << 20
"""Bytes that the sets of one case cover together, several times the largest L2 cache."""
CACHED = {"1B": (16, 64), "8B": (32, 128)}
"""Layers and head size of the Llama shapes whose caches are committed to."""


@dataclass(frozen=True)
class Sizes:
    """What is measured. `seed` cases of other plugins are compared as they are."""

    batches: Sequence[int]
    nodes: Sequence[int]
    capacities: Sequence[int]
    dtypes: Sequence[torch.dtype]
    sizes: Sequence[int]
    heads: tuple[int, int] = HEADS
    commit_capacity: int = 8192
    shapes: Sequence[str] = tuple(CACHED)


FULL = Sizes((1, 8, 32), (1, 16, 64), (1024, 8192, 32768), tuple(LIMITS), (128, 64))
QUICK = Sizes((1, 8), (1, 64), (1024, 8192), (torch.float16,), (128,))
DRY = Sizes((1,), (4,), (64, 512), (torch.float16,), (16,), (4, 2), 32, ("dry",))


def launcher(
    plugin: Plugin, inputs: Sequence[Any], outputs: Sequence[Any], values: Values | None = None
) -> Callable[[], object]:
    """One launch, planned before: what is timed is the kernel, not the planning."""
    plan, scalars = plan_for(plugin, [tuple(x.shape) for x in inputs], plugin.values(values))
    compiled = kernel(plugin)[plan.grid]
    return lambda: compiled(
        *inputs, *scalars, *outputs, **plan.constants, num_warps=plan.warps
    )


def copies(size: int, timer: Timer) -> int:
    """How many sets of `size` bytes are used in turn."""
    return max(1, min(64, math.ceil(ROTATED / size))) if timer.real else 1


def commits(sizes: Sizes, timer: Timer, bandwidth: float | None, budget: Budget) -> Table:
    """KVCommit: 8 of the tree's rows in every layer's cache, one launch."""
    head = ("cache", "tree", "batch", "µs", "µs, graph", "moved, MB", "floor µs", "equal")
    table = Table("KVCommit", head, budget)
    for name, nodes, batch in itertools.product(sizes.shapes, sizes.nodes, sizes.batches):
        if nodes == 1:
            continue  # a chain of one row never moves

        def measure(name: str = name, nodes: int = nodes, batch: int = batch) -> list[object]:
            layers, size = CACHED.get(name, (2, 16))
            heads, slots, device = sizes.heads[1], sizes.commit_capacity, timer.device
            shape = (2 * layers * batch, heads, slots, size)
            cache = torch.randn(shape, dtype=torch.float16, device=device)
            kept = min(8, nodes - 1)
            path = torch.full((batch, nodes), -1, dtype=torch.int64)
            path[:, 0] = 0
            path[:, 1:kept] = nodes - kept + torch.arange(1, kept)
            count = torch.full((batch,), kept, dtype=torch.int64, device=device)
            length = slots - nodes
            lengths = torch.full((batch,), length, dtype=torch.int64, device=device)
            source = length + path[0, :kept].to(device)
            want, tail = cache[:, :, source].clone(), cache[:, :, :length].sum(dtype=torch.float32)
            inputs = [cache, path.to(device), count, lengths]
            run = launcher(PLUGINS["KVCommit"], inputs, [cache])
            run()
            same = torch.equal(cache[:, :, length : length + kept], want)
            same &= bool(torch.equal(cache[:, :, :length].sum(dtype=torch.float32), tail))
            taken = timer.events({"ours": [run]})["ours"]
            alone = timer.graphs({"ours": [run]})["ours"]
            moved = 2 * (kept - 1) * shape[0] * heads * size * 2
            floor = moved / bandwidth * 1e6 if bandwidth else None
            return [taken, alone, moved / 1e6, floor, "yes" if same else "NO"]

        table.row([name, nodes, batch], measure)
        if timer.real:
            torch.cuda.empty_cache()
    return table


def verifies(sizes: Sizes, timer: Timer, budget: Budget) -> Table:
    """TreeVerify on trees whose siblings repeat tokens."""
    table = Table("TreeVerify", ("tree", "batch", "µs", "µs, graph", "equal"), budget)
    for nodes, batch in itertools.product(sizes.nodes, sizes.batches):

        def measure(nodes: int = nodes, batch: int = batch) -> list[object]:
            _, inputs, _ = tree_verify(5, batch, nodes)
            plugin = PLUGINS["TreeVerify"]
            want = plugin.reference(*inputs)
            given = [tensor(x, timer.device) for x in inputs]
            outputs = [tensor(np.full_like(x, -77), timer.device) for x in want]
            run = launcher(plugin, given, outputs)
            run()
            same = all(np.array_equal(array(o), w) for o, w in zip(outputs, want, strict=True))
            taken = timer.events({"ours": [run]})["ours"]
            return [taken, timer.graphs({"ours": [run]})["ours"], "yes" if same else "NO"]

        table.row([nodes, batch], measure)
    return table


def meanings(timer: Timer, budget: Budget) -> Table:
    """Every kernel against its numpy reference, on the cases of the tests."""
    head = ("kernel", "µs", "µs, graph", "KB", "largest difference")
    table = Table("Every kernel against its reference", head, budget)
    cases: list[Case] = every_plugin()
    if timer.real:
        cases += [
            tree_verify(1, 32, 64, 9), kv_commit(1, 16, [1000, 3, 70], 64, 128),
            tree_attention(1, [900, 17], 64, (8, 2), 128, 1000, scale=0.09),
            tree_attention(2, [900], 16, (32, 8), 64, 1000, np.float16, scale=0.12, window=200),
        ]  # fmt: skip
    for case in cases:

        def measure(case: Case = case) -> list[object]:
            name, inputs, values = case
            plugin = PLUGINS[name]
            got = run_kernel(plugin, inputs, values, timer.device)
            want = plugin.reference(*inputs, **plugin.values(values))
            worst = 0.0
            for one, two in zip(got, want, strict=True):
                limit = {2: 2e-2, 4: 2e-4}.get(one.dtype.itemsize, 0)
                gap = np.abs(one.astype(float) - two.astype(float))
                if not np.all(gap <= limit * (1 + np.abs(two.astype(float)))):
                    raise AssertionError(f"{name} differs by {np.nanmax(gap):.3g}")
                worst = max(worst, float(gap.max(initial=0)))
            given = [tensor(x, timer.device) for x in inputs]
            named = {t.name: x for t, x in zip(plugin.inputs, given, strict=True)}
            outputs = [
                named[plugin.aliases[t.name]] if t.name in plugin.aliases
                else tensor(x, timer.device)
                for t, x in zip(plugin.outputs, want, strict=True)
            ]  # fmt: skip
            run = launcher(plugin, given, outputs, values)
            taken = timer.events({"ours": [run]})["ours"]
            moved = sum(x.nbytes for x in (*inputs, *want))
            return [taken, timer.graphs({"ours": [run]})["ours"], moved / 1e3, f"{worst:.1e}"]

        table.row([case[0]], measure)
    return table
