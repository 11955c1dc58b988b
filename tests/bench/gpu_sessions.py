"""Part (b) of tests/bench/gpu_step.py: `ort-cuda` end to end, plain and speculative."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import onnx_ir as ir

from graftline.build.optimize import optimize
from graftline.build.pipelines import pipeline_of
from graftline.bundle.store import save_graph
from graftline.bundle.weight_file import WeightFile
from graftline.facts import decoder_facts
from graftline.models import fake_host
from graftline.passes import GRAFTS, Pipeline
from graftline.passes.graph.weights import lazy
from graftline.ports import read_ports
from graftline.recipe import recipe
from graftline.runtimes.control.costs import Costs
from graftline.runtimes.engine import Engine
from graftline.runtimes.load import load
from graftline.runtimes.ort.cuda import CudaSession
from graftline.runtimes.ort.provider import cuda_missing
from graftline.runtimes.step_times import measure_costs
from graftline.targets import CUDA
from graftline.tree import Tree
from tests.bench.gpu_timing import ROUNDS, Budget, Table

RECIPE = "token-recycling"
OPENING = 100
"""Seconds that the largest shape may take to be made and opened."""
SHAPES: Mapping[str, Mapping[str, int | bool]] = {
    "SmolLM2 shape": dict(
        num_hidden_layers=30, hidden_size=576, num_attention_heads=9, num_key_value_heads=3,
        intermediate_size=1536, vocab_size=49152, tie_word_embeddings=True,
    ),
    "Llama 1B shape": dict(
        num_hidden_layers=16, hidden_size=2048, num_attention_heads=32, num_key_value_heads=8,
        intermediate_size=8192, vocab_size=128256, tie_word_embeddings=True,
    ),
    "Llama 8B shape": dict(
        num_hidden_layers=32, hidden_size=4096, num_attention_heads=32, num_key_value_heads=8,
        intermediate_size=14336, vocab_size=128256, tie_word_embeddings=False,
    ),
}  # fmt: skip
DRY: Mapping[str, Mapping[str, int | bool]] = {
    "dry shape": dict(
        num_hidden_layers=2, hidden_size=64, num_attention_heads=4, num_key_value_heads=2,
        intermediate_size=128, vocab_size=300, tie_word_embeddings=True,
    )
}  # fmt: skip


@dataclass(frozen=True)
class Scale:
    """How much is measured of a session."""

    pasts: tuple[int, ...] = (1024, 8000)
    rows: tuple[int, ...] = (1, 16, 64)
    tokens: int = 128


DRY_SCALE = Scale((24,), (1, 4), 8)


@dataclass(frozen=True)
class Host:
    """An opened session; `weights` bytes are read by every step."""

    name: str
    session: CudaSession
    weights: int


def fill(model: ir.Model) -> None:
    """Give weights without data seeded numbers: one block, repeated, because their values do not
    change what a step costs."""
    block = np.random.default_rng(0).standard_normal(1 << 20).astype(np.float32) * 0.02
    for value in model.graph.initializers.values():
        if isinstance(value.const_value, ir.LazyTensor) and value.shape is not None:
            shape = [int(d) for d in value.shape]  # type: ignore[arg-type]
            made = partial(np.resize, block, shape)
            value.const_value = lazy(made, ir.DataType.FLOAT, shape, value.name or "")


def read_bytes(model: ir.Model) -> int:
    """Bytes of the weights that a step reads whole; of a table that is only looked up, none."""
    return sum(
        v.const_value.nbytes
        for v in model.graph.initializers.values()
        if v.const_value is not None and {n.op_type for n in v.consumers()} != {"Gather"}
    )


@contextmanager
def random_host(
    name: str, config: Mapping[str, Any], dtype: str, capacity: int, device: str
) -> Iterator[Host]:
    """A session of that Llama shape with seeded weights, in a folder that goes when it closes."""
    from transformers import LlamaConfig

    model = fake_host(LlamaConfig(**config, max_position_embeddings=capacity + 64)).model
    fill(model)
    _, text = pipeline_of(RECIPE, None, CUDA, dtype, None)
    Pipeline.parse(text, GRAFTS).run(model)
    with TemporaryDirectory() as folder:
        path = Path(folder) / "g.onnx"
        save_graph(model, path, WeightFile(Path(folder), "g.weights", lambda size: None), {})
        facts, ports, weights = decoder_facts(model), read_ports(model), read_bytes(model)
        del model
        session = CudaSession(path, facts, ports, capacity=capacity, device=device)
        yield Host(name, session, weights)


def cache_bytes(host: Host, past: int) -> int:
    """Bytes of keys and values that a step reads after `past` positions."""
    caches = [p for p in host.session.ports if p.mirror is not None]
    return sum(
        int(p.shape[1]) * int(p.shape[3]) * np.dtype(p.dtype).itemsize * past for p in caches
    )


def milliseconds(work: Callable[[], object]) -> float:
    """Of one call, after one that is not counted: the median of at least ROUNDS."""
    work()
    taken: list[float] = []
    for _ in range(4 * ROUNDS):
        began = time.perf_counter()
        work()
        taken.append((time.perf_counter() - began) * 1e3)
    return median(taken)


def steps(host: Host, scale: Scale, bandwidth: float | None, table: Table) -> None:
    """Step time against weights plus cache over the copy bandwidth; the commit of 8 rows."""
    session, rng = host.session, np.random.default_rng(0)
    for past in scale.pasts:
        for rows in scale.rows:

            def measure(past: int = past, rows: int = rows) -> list[object]:
                session.reset(1)
                ids = rng.integers(0, session.facts.vocabulary, past, dtype=np.int64)
                session.prefill([ids])
                tokens = ids[None, :rows]
                tree = Tree(tokens[0], np.array([-1, *((i - 1) // 2 for i in range(1, rows))]))
                depth, mask = tree.depth[None], tree.mask[None]
                shape = (tokens, depth, mask) if rows > 1 else (tokens,)
                step = partial(session.score, *shape)
                path = [0, *range(max(rows - 7, 1), rows)]

                def commit() -> None:
                    session.commit([path])
                    session.truncate([past])

                if bandwidth is None:
                    step()
                    commit()
                    return [None] * 4
                taken = milliseconds(step)
                moved = milliseconds(commit) if rows > 8 else None
                floor = (host.weights + cache_bytes(host, past)) / bandwidth * 1e3
                return [taken, floor, 100 * floor / taken, moved and moved * 1e3]

            table.row([host.name, past, rows], measure)


@dataclass(frozen=True)
class Rate:
    """Tokens per second of a recipe, the median of its rounds; and the last round's result."""

    rate: float
    last: Any


def rates(
    engine: Engine, prompt: Any, tokens: int, recipes: Mapping[str, str], real: bool
) -> dict[str, Rate]:
    """Generation by recipes, each with its step, in turn."""
    found: dict[str, list[Any]] = {one: [] for one in recipes}
    rounds = ROUNDS + 1 if real else 1
    for _ in range(rounds):
        for one, step in recipes.items():
            asked: Any = {"max_new_tokens": tokens, "ignore_eos": True, "recipe": one, "step": step}
            found[one].append(engine.generate(prompt, **asked))
    return {  # the first round warms up
        one: Rate(median(r.stats.tokens_per_second for r in results[rounds > 1 :]), results[-1])
        for one, results in found.items()
    }


def generations(
    name: str, engine: Engine, prompt: Any, scale: Scale, real: bool, table: Table
) -> None:
    """Plain and speculative generation, in turn; tokens must be the same."""
    found = rates(engine, prompt, scale.tokens, {"plain": "host", RECIPE: "host"}, real)
    plain = found["plain"]
    for one, made in found.items():
        same = "yes" if made.last.tokens == plain.last.tokens else "no"
        timed = [made.rate, made.rate / plain.rate] if real else [None, None]
        cells = [f"{made.last.stats.mat:.2f}", *timed, same]
        table.row([name, one], lambda cells=cells: cells)


def sessions(
    device: str, smollm2: Path | None, scale: Scale, bandwidth: float | None, budget: Budget
) -> list[Table]:
    """Both tables: steps and generations."""
    real = device == "cuda"
    head = ("host", "past", "rows", "step ms", "floor ms", "floor / step, %", "commit µs")
    table = Table("ort-cuda: one step, fp16", head, budget)
    speed = Table(
        "ort-cuda: generation, fp16, greedy",
        ("host", "recipe", "MAT", "tokens/s", "over plain", "plain's tokens"), budget,
    )  # fmt: skip
    if real and (missing := cuda_missing()):
        table.row(["all"], lambda: _raise(RuntimeError(missing)))
        return [table, speed]
    capacity = max(scale.pasts) + max(scale.tokens, 2 * max(scale.rows))
    for name, config in (SHAPES if real else DRY).items():
        try:
            if budget.left < OPENING:
                raise TimeoutError(f"less than {OPENING} s left")
            with random_host(name, config, "fp16", capacity, device) as host:
                steps(host, scale, bandwidth, table)
                session = host.session
                costs = Costs.from_json(measure_costs(session)) if real else None
                engine = Engine(session, None, {}, recipe(RECIPE), costs)
                ids = np.random.default_rng(1).integers(0, session.facts.vocabulary, 24)
                generations(name, engine, ids.tolist(), scale, real, speed)
        except Exception as error:  # the next shape may do better
            table.row([name], lambda error=error: _raise(error))
    if real:
        _smollm2(smollm2, scale, speed)
    return [table, speed]


def _smollm2(path: Path | None, scale: Scale, table: Table) -> None:
    if path is None:
        table.row(["SmolLM2"], lambda: _raise(FileNotFoundError("give --smollm2 CHECKPOINT")))
        return
    try:
        with TemporaryDirectory() as folder:
            bundle = optimize(path, Path(folder) / "b", recipe=RECIPE, target=CUDA, dtype="fp16")
            prompt = [{"role": "user", "content": "Write a Python function that sorts a list."}]
            generations("SmolLM2", load(bundle.path, prefix_cache=0), prompt, scale, True, table)
    except Exception as error:
        table.row(["SmolLM2"], lambda error=error: _raise(error))


def _raise(error: Exception) -> Any:
    raise error
