"""What an engine keeps of thousands of requests, and of hundreds of shapes of calls: nothing."""

from __future__ import annotations

import gc
import os
from pathlib import Path

import numpy as np
import pytest
from test_ort import HOSTS, sessions
from toy_session import FLAT

from graftline.recipe import recipe
from graftline.runtimes.engine import Engine
from graftline.runtimes.ort.calls import MOST_CALLS
from graftline.runtimes.prefix_cache import PrefixCache

SEVERAL = 10
"""Sequences that are scored together."""


def test_more_shapes_of_calls_than_stay_bound(tmp_path: Path) -> None:
    """Those that come again, after they were forgotten, give the same bits."""
    session, _ = sessions(HOSTS["grouped"], tmp_path)
    chance = np.random.default_rng(0)
    session.reset(SEVERAL)
    session.prefill([chance.integers(0, 61, 3 + n) for n in range(SEVERAL)])
    tokens = chance.integers(0, 61, (SEVERAL, 60))
    most = min(60, session.capacity - 3 - SEVERAL)
    widths = range(1, most + 1)
    shapes: set[tuple[int, int]] = set()
    first: dict[int, np.ndarray] = {}
    for width in widths:
        counts = [1 + (width + n) % width for n in range(SEVERAL)]
        first[width] = session.score(tokens[:, :width], counts=counts).logits[:, 0].copy()
        shapes |= {(n, count) for n, count in enumerate(counts)}
        for row in range(SEVERAL):
            for asked in (1, 2):
                session.follow(row, 3 + row, tokens[row, :width].tolist(), min(asked, width))
                shapes.add((row, 100 * asked + width))
    assert len(shapes) > MOST_CALLS
    assert len(session._calls) <= MOST_CALLS
    for width in widths:
        counts = [1 + (width + n) % width for n in range(SEVERAL)]
        again = session.score(tokens[:, :width], counts=counts).logits[:, 0]
        assert np.array_equal(again, first[width])


def resident() -> int:
    """Bytes of memory that this process has now."""
    gc.collect()
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="Linux tells it")
def test_ten_thousand_requests_leave_memory_as_it_was(tmp_path: Path) -> None:
    """Prompts that all differ, waits, streams that are left, cancelled and ended ones."""
    session, _ = sessions(HOSTS["grouped"], tmp_path)
    cache = PrefixCache(1 << 20)
    engine = Engine(session, None, {}, recipe("suffix"), FLAT, prefixes=cache)
    chance = np.random.default_rng(3)

    def requests(count: int) -> None:
        for _ in range(count // 50):
            prompts = [chance.integers(0, 61, int(n)).tolist() for n in chance.integers(1, 25, 49)]
            engine.generate(prompts, max_new_tokens=2, batch=8)
            passes = engine.passes(prompts[0], max_new_tokens=9)
            next(passes)

    requests(3_000)
    before = resident()
    requests(7_000)
    assert resident() < 1.05 * before
    assert 0.9 * cache.most < cache.nbytes <= cache.most
    assert sum(engine.stats().requests_finished.values()) >= 9_999
