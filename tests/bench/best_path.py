"""The best path through a graph of vertices, beside plain loops: pointer doubling (lookahead) and
joint Viterbi as nodes of one graph in ONNX Runtime. In turn, medians.

    python tests/bench/best_path.py --vertices 64,256,1024 --longest 64
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime

from graftline.best_path import best_paths
from graftline.passes.grafts.path_text import written
from graftline.passes.graph.emit import Emit, new_input, new_output
from graftline.path_search import PathSearch
from graftline.roles import SCORES, STATES, TRANSITIONS, VERTICES
from graftline.runtimes.machine import machine
from graftline.runtimes.ort.held import open_model

FLOAT, INT64 = ir.DataType.FLOAT, ir.DataType.INT64


def main() -> None:
    """Print a row for each search and number of vertices."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--vertices", default="64,256,1024")
    for name, usual in (("longest", 64), ("batch", 1), ("tokens", 500), ("width", 64),
                        ("runs", 5), ("threads", 2)):  # fmt: skip
        parser.add_argument(f"--{name}", type=int, default=usual)
    given = parser.parse_args()
    print(f"{machine()}, {given.threads} threads, onnxruntime {onnxruntime.__version__}, {given}")
    print("| search | vertices | nodes | positions | loops | graph | speed-up |\n|" + "---|" * 7)
    for count in map(int, given.vertices.split(",")):
        feed = drawn(given.batch, count, given.tokens, given.width)
        for how in (PathSearch(), PathSearch("joint-viterbi", longest=given.longest)):
            model = graph(count, given.tokens, given.width, how)
            session = open_model(model, given.threads)
            loops = median_of(lambda f=feed, h=how: best_paths(*f.values(), h), given.runs)
            fast = median_of(lambda f=feed, s=session: s.run(None, f), given.runs)
            found, made = best_paths(*feed.values(), how), session.run(None, feed)
            np.testing.assert_array_equal(made[2], found.counts)
            np.testing.assert_allclose(made[0], found.scores)
            row = f"| {how.by} | {count} | {len(model.graph)} | {int(found.counts.max())} "
            print(f"{row}| {loops * 1e3:.2f} ms | {fast * 1e3:.2f} ms | {loops / fast:.1f}x |")


def drawn(rows: int, count: int, tokens: int, width: int) -> dict[str, Any]:
    """Seeded scores, transitions to later vertices that are likelier the nearer, and states, as
    `best_paths` takes them."""
    random = np.random.default_rng(0)
    place = np.arange(count)
    apart = (place - place[:, None]).astype(np.float64)
    ways = random.standard_normal((rows, count, count)) - 0.5 * apart
    ways = np.where(apart > 0, ways, -np.inf)
    most = ways[:, :-1].max(-1, keepdims=True)
    total = most + np.log(np.exp(ways[:, :-1] - most).sum(-1, keepdims=True))
    ways[:, :-1] -= total
    return {
        SCORES: random.standard_normal((rows, count, tokens)).astype(np.float32),
        TRANSITIONS: ways.astype(np.float32),
        STATES: random.standard_normal((rows, count, width)).astype(np.float32),
        VERTICES: np.full(rows, count, np.int64),
    }


def graph(count: int, tokens: int, width: int, how: PathSearch) -> ir.Model:
    """The nodes of a search alone, over so many vertices."""
    made = ir.Graph([], [], nodes=[], opset_imports={"": 24}, name="path")
    shapes = {SCORES: [count, tokens], TRANSITIONS: [count, count], STATES: [count, width]}
    given = {n: new_input(made, n, FLOAT, ["B", *shape]) for n, shape in shapes.items()}
    given[VERTICES] = new_input(made, VERTICES, INT64, ["B"])
    found = written(Emit(made, "best-path"), given, how)
    ends = (("heard", FLOAT, ["B", "U", tokens]), ("held", FLOAT, ["B", "U", width]),
            ("counts", INT64, ["B"]))  # fmt: skip
    for value, (name, kind, shape) in zip(found, ends, strict=True):
        new_output(made, value, name, kind, shape)
    return ir.Model(made, ir_version=11)


def median_of(call: Callable[[], Any], runs: int) -> float:
    """Seconds, after one call that warms up."""
    seconds = list[float]()
    for _ in range(runs + 1):
        began = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds[1:])


if __name__ == "__main__":
    main()
