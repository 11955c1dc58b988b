"""tests/kept_passes.py: an equal run of passes is taken, and another one is run."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir
import pytest

from graftline.models.decoder import TinyDecoder
from graftline.passes import GRAFTS, Pipeline
from graftline.passes.grafts import select_rows
from graftline.passes.grafts.kv_cache import KvCache
from graftline.passes.grafts.select_rows import SelectRows
from graftline.passes.pipeline import pipeline
from tests.kept_passes import Fault, KeptPasses

PASSES = Pipeline.parse("canonicalize | anchors | kv-cache | select-rows", GRAFTS)


@pytest.fixture
def kept(monkeypatch: pytest.MonkeyPatch) -> KeptPasses:
    kept = KeptPasses()
    kept.keep(monkeypatch)
    return kept


@pytest.fixture
def count(kept: KeptPasses, monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """How many passes a run on a new tiny host applies; what stands for one is no code of ours."""
    done: list[str] = []
    real = pipeline.applied

    def applied(*given: object) -> object:
        done.append(str(given[0]))
        return real(*given)  # type: ignore[arg-type]

    monkeypatch.setattr(pipeline, "applied", applied)

    def run(spoil: Callable[[ir.Model], None] = lambda model: None) -> int:
        model = TinyDecoder(layers=2).build()
        spoil(model)
        before = len(done)
        reports = PASSES.run(model)
        assert [r.text for r in reports] == [str(g) for g in PASSES.grafts]
        return len(done) - before

    return run


def test_an_equal_run_is_taken_and_is_what_a_run_makes(count: Callable[..., int]) -> None:
    assert (count(), count()) == (4, 0)
    taken, made = TinyDecoder(layers=2).build(), TinyDecoder(layers=2).build()
    PASSES.run(taken)
    for graft in PASSES.grafts:
        pipeline.applied(graft, made, None, pipeline.Memo())
    assert ir.to_proto(taken).SerializeToString() == ir.to_proto(made).SerializeToString()
    taken.graph.outputs[0].name = "spoiled"
    assert count() == 0, "what a test does to its graph is its own"
    again = TinyDecoder(layers=2).build()
    PASSES.run(again)
    assert again.graph.outputs[0].name != "spoiled"


def _weight(model: ir.Model) -> None:
    value = next(v for v in model.graph.initializers.values() if "embed" in (v.name or ""))
    assert value.const_value is not None
    other = value.const_value.numpy().copy()
    other.flat[0] = np.nextafter(other.flat[0], 9)
    value.const_value = ir.tensor(other, name=value.name)


def _note(model: ir.Model) -> None:
    model.graph[3].metadata_props["note"] = "another"


@pytest.mark.parametrize("spoil", [_weight, _note])
def test_another_graph_is_another_run(
    count: Callable[..., int], spoil: Callable[[ir.Model], None]
) -> None:
    assert (count(), count(spoil)) == (4, 4)


def test_a_fault_keeps_what_it_cannot_reach(kept: KeptPasses, count: Callable[..., int]) -> None:
    assert count() == 4
    kept.fault = Fault(graft=KvCache)
    assert (count(), count()) == (2, 2)
    kept.fault = Fault()
    assert count() == 0


def test_a_fault_in_a_function_reaches_who_calls_it(
    kept: KeptPasses, count: Callable[..., int], monkeypatch: pytest.MonkeyPatch
) -> None:
    called, other = (SelectRows, "apply"), (select_rows, "subset")
    kept.fault = Fault()
    kept.watch(monkeypatch, called)
    kept.watch(monkeypatch, other)
    assert count() == 4
    kept.fault = Fault(calls=frozenset({called}))
    assert (count(), count()) == (1, 1)
    kept.fault = Fault(calls=frozenset({other}))
    assert count() == 0, "a law that needs numbers did not run"
