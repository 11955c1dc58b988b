"""What engines count, against what requests say of themselves."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from engines import left_over
from test_scheduler import policy
from toy_session import FLAT, ToySession

from graftline.errors import BackendError
from graftline.recipe import recipe
from graftline.runtimes.counters import SpecDecode
from graftline.runtimes.decoding import Decoding
from graftline.runtimes.engine import Engine
from graftline.runtimes.prefix_cache import PrefixCache
from graftline.runtimes.session import Scores
from graftline.runtimes.verdict import Verdict
from graftline.tree import Tree

Make = Callable[..., Engine]


@pytest.mark.parametrize(
    "name", ["prompt-lookup", "token-recycling", policy("suffix", branch=True)]
)
def test_drafts_are_counted_as_they_were_judged(
    make_engine: Make, prompts: list[list[int]], name: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By depth, for chains and trees; a step whose text ended within its draft counts so far."""
    judged: list[tuple[int, int]] = []
    judge = Decoding.judge

    def counted(one: Decoding, tree: Tree, scores: Scores, row: int) -> Any:
        path, fresh = judge(one, tree, scores, row)
        if len(tree) > 1:
            judged.append((len(tree) - 1, len(fresh) - 1))
        return path, fresh

    monkeypatch.setattr(Decoding, "judge", counted)
    engine = make_engine(costs=None)
    total = SpecDecode()
    for prompt in prompts:
        judged.clear()
        found = engine.generate(prompt, max_new_tokens=40, ignore_eos=True, recipe=name).stats
        counts = found.spec_decode
        assert counts.num_drafts == len(judged)
        assert counts.num_draft_tokens == sum(n for n, _ in judged) == found.drafted
        assert counts.num_accepted_tokens == sum(n for _, n in judged)
        depths = range(len(counts.num_accepted_tokens_per_pos))
        by_depth = tuple(sum(n > depth for _, n in judged) for depth in depths)
        assert counts.num_accepted_tokens_per_pos == by_depth
        if judged:
            mean = np.mean([n + 1 for _, n in judged])
            assert counts.mean_acceptance_length == pytest.approx(mean)
            assert counts.acceptance_rate_per_pos == tuple(n / len(judged) for n in by_depth)
        total = total.plus(counts)
    assert total.num_accepted_tokens > 20
    assert engine.stats().spec_decode == total
    assert 0 < total.draft_acceptance_rate < 1


def test_nothing_drafted_is_a_token_a_step() -> None:
    none = SpecDecode()
    assert (none.mean_acceptance_length, none.draft_acceptance_rate) == (1.0, 0.0)
    assert none.acceptance_rate_per_pos == ()
    both = SpecDecode(1, 3, 2, (1, 1)).plus(SpecDecode(2, 5, 1, (1,)))
    assert both == SpecDecode(3, 8, 3, (2, 1))


def test_an_engine_counts_every_request_once(prompts: list[list[int]]) -> None:
    session = ToySession(capacity=900)
    engine = Engine(session, None, {}, recipe("suffix"), FLAT, seats=2, prefixes=PrefixCache())
    results = engine.generate(prompts[:5], max_new_tokens=9)
    begun = [engine.submit(p, max_new_tokens=30, ignore_eos=True) for p in prompts[5:9]]
    engine._scheduler.step()
    engine._scheduler.step()
    found = engine.stats()
    assert (found.num_requests_running, found.num_requests_waiting) == (2, 2)
    begun[0].close()  # one that decodes, and one that waits
    begun[3].close()
    results += [one.wait() for one in begun[1:3]]
    again = engine.generate(prompts[0], max_new_tokens=9)
    results.append(again)
    before = engine.stats()
    left_over(engine)
    found = engine.stats()
    assert found == before, "also of those that nobody has swept away yet"
    assert (found.num_requests_running, found.num_requests_waiting) == (0, 0)
    assert found.requests_finished == {"length": 8, "cancelled": 2}
    cancelled = [begun[n]._generation.one for n in (0, 3)]
    assert found.generation_tokens == sum(
        len(r.tokens)
        for r in [*results, *cancelled]  # type: ignore[attr-defined]
    )
    read = sum(one.read for one in cancelled)
    sizes = [len(p) for p in [*prompts[:5], *prompts[6:8], prompts[0]]]
    assert found.prompt_tokens == found.prefix_cache_queries == sum(sizes) + read
    hits = sum(r.stats.reused for r in results) + sum(one.reused for one in cancelled)
    assert found.prefix_cache_hits == hits >= len(prompts[0])
    assert found.prefix_cache_bytes > 0


def test_errors_are_counted_too(make_engine: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = make_engine()
    engine.generate([1, 2], max_new_tokens=3, ignore_eos=True)

    def fails(*given: Any) -> Verdict:
        raise BackendError("it broke")

    monkeypatch.setattr(engine.session, "score", fails)
    with pytest.raises(BackendError):
        engine.generate([1, 2], max_new_tokens=3, ignore_eos=True)
    found = engine.stats()
    assert found.requests_finished == {"length": 1, "error": 1}
    assert (found.prefix_cache_queries, found.prefix_cache_bytes) == (0, 0)


def test_branches_are_requests(make_engine: Make) -> None:
    engine = make_engine()
    engine.branches([1, 2, 3], [[4], [5, 6]], max_new_tokens=4, ignore_eos=True)
    found = engine.stats()
    assert found.requests_finished == {"length": 2}
    assert found.generation_tokens == 8
