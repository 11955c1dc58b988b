"""What laws take of memory beside the weights, in bytes that numpy and Python ask for.

The host has few features and many tokens, as small models of large vocabularies do: its logits and
its embedding outweigh everything else.
"""

from __future__ import annotations

import gc
import sys
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import onnx_ir as ir
import pytest

from graftline import nearness
from graftline.evaluate import prepare, run
from graftline.facts import DecoderFacts
from graftline.kinds.decoder import stored_rows
from graftline.kinds.decoder.probe import make_probe
from graftline.kinds.decoder.proof import equal_rows
from graftline.kinds.decoder.stored_rows import StoredRows
from graftline.kinds.decoder.whole import Taps, whole
from graftline.models.decoder import TinyDecoder
from graftline.models.host import silent
from graftline.models.own_model import transformers_model
from graftline.models.reference import Own
from graftline.models.tiny import tiny
from graftline.models.weights import read_headers
from graftline.nearness import LEAST, few_rows, gaps, spread_gaps
from graftline.passes.anchors.reduce import hold_weights, reduce_host
from graftline.passes.graph.constants import Constants
from graftline.passes.graph.weights import lazy
from graftline.passes.laws.compare import Comparison
from graftline.runtimes.ort.graph import open_graph, open_reference
from graftline.runtimes.row_invariance import PLACES, SIZES, row_invariance
from graftline.runtimes.scores import Scores
from tests.passes.tiny_hosts import decoder_feed, grafted

VOCABULARY = 1 << 16
ROW = 4 * VOCABULARY
ROWS = 64
COMPARED = 12 * 2 * ROW
"""What comparing one row takes: fp64, and what is made of it on the way."""
FACTS = DecoderFacts(VOCABULARY, 64, 2, 4, 4, 16, 0)


@pytest.fixture(autouse=True)
def _one_row(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let one row be compared at a time, and four wait in memory."""
    assert nearness.AT_ONCE <= 1 << 20
    monkeypatch.setattr(nearness, "AT_ONCE", VOCABULARY)
    monkeypatch.setattr(stored_rows, "IN_MEMORY", 4 * ROW)


def peak(work: Callable[[], Any]) -> int:
    """Most bytes that were held at once during `work`, beside those held before."""
    gc.collect()
    tracemalloc.start()
    try:
        work()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def logits(rows: int = ROWS, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((rows, VOCABULARY), np.float32)


# comparing


@pytest.mark.parametrize("measure", [gaps, spread_gaps])
def test_logits_are_compared_a_few_rows_at_a_time(measure: Callable[..., np.ndarray]) -> None:
    one, other = logits(), logits(seed=1)
    assert peak(lambda: measure(one, other)) < COMPARED < 8 * one.size
    few = [measure(one[i : i + 1], other[i : i + 1])[0] for i in range(ROWS)]
    np.testing.assert_array_equal(measure(one, other), few)


def test_a_law_compares_a_few_rows_at_a_time_by_the_channels_of_all() -> None:
    one = logits().reshape(2, ROWS // 2, VOCABULARY)
    other = one.copy()
    other[1, -1, 5] += 1e-6
    one[0, 0, 5] = other[0, 0, 5] = 100.0  # what that channel is judged by
    one[0, 3, 7] = other[0, 3, 7] = -np.inf
    law = Comparison("graft", "law")
    assert peak(lambda: law.output("logits", one, other)) < 2 * COMPARED < 8 * one.size
    off = abs(float(one[1, -1, 5]) - float(other[1, -1, 5]))
    assert law.output("logits", one, other) == off / 100.0


def test_rows_that_are_too_few_are_no_rows_that_agree() -> None:
    with pytest.raises(ValueError, match="broadcast"):
        gaps(logits(3), logits(4))


# waiting


def test_the_logits_of_the_reference_wait_in_a_file() -> None:
    rows = logits()
    made: list[StoredRows] = []
    assert peak(lambda: made.append(StoredRows(rows))) < 16 * ROW < rows.nbytes
    places = np.asarray([5, 63, 0, 5])
    np.testing.assert_array_equal(made[0].at(places), rows[places])


@pytest.mark.parametrize("size", [1, 1 << 30])
def test_rows_wait_alike_on_disk_and_in_memory(size: int, monkeypatch: Any) -> None:
    monkeypatch.setattr(stored_rows, "IN_MEMORY", size)
    rows = np.arange(12, dtype=np.float16).reshape(4, 3)
    stored = StoredRows(rows)
    np.testing.assert_array_equal(stored.at(np.asarray([3, 1])), rows[[3, 1]])
    assert stored.at(np.asarray([], np.int64)).shape == (0, 3)
    with pytest.raises(OSError, match="row 4 of 6 bytes is gone"):
        stored.at(np.asarray([4]))


def answer(tokens: np.ndarray) -> np.ndarray:
    """Logits that follow from the tokens."""
    steps = np.arange(VOCABULARY, dtype=np.float32)
    found = np.empty((len(tokens), VOCABULARY), np.float32)
    for row, token in zip(found, tokens, strict=True):
        np.cos(steps * np.float32(1 + int(token) % 97), out=row)
    return found


def test_a_probe_holds_the_logits_of_one_run_and_no_other() -> None:
    made: list[Any] = []
    took = peak(lambda: made.append(make_probe(answer, Constants({120}), FACTS)))
    assert len(made[0].main.tokens) == 128
    assert took < 128 * ROW + COMPARED


def test_equal_rows_takes_a_few_rows_of_a_long_sequence_at_a_time() -> None:
    main = make_probe(answer, Constants({120}), FACTS).main
    few = [main.rows[part] for part in few_rows(128, VOCABULARY)]

    def work() -> None:
        pairs = ((main.of(rows)[1], answer(main.tokens[rows])) for rows in few)
        found = equal_rows("export", "checkpoint", pairs, 1e-9, "itself")
        assert found.what == "128 rows against itself, argmax equal in 128"

    assert peak(work) < COMPARED + 8 * ROW < 128 * ROW


class Engine:
    """A session that answers as `answer` does, without memory of its own."""

    supports_trees, facts, capacity, row_invariant = False, FACTS, 400, False
    taps: ClassVar[dict[str, np.ndarray]] = {}

    def reset(self, batch: int) -> None:
        self.batch = batch

    def prefill(self, prompts: list[np.ndarray]) -> Scores:
        last = np.stack([answer(prompt[-1:]) for prompt in prompts])
        return Scores(last.argmax(-1), last)

    def score(self, tokens: np.ndarray, depth: Any = None, mask: Any = None) -> Scores:
        found = answer(tokens.reshape(-1)).reshape(*tokens.shape, VOCABULARY)
        return Scores(np.zeros(tokens.shape, np.int64), found)

    def commit(self, paths: Any) -> None:
        pass

    def truncate(self, lengths: Any) -> None:
        pass


def test_an_engine_is_compared_a_few_rows_at_a_time() -> None:
    engine: Any = Engine()
    probe = make_probe(answer, Constants({120}), FACTS)
    step = 64 * ROW  # the engine answers it, and it is copied
    took = peak(lambda: whole("ort-cpu", engine, probe, FACTS, "fp32", Taps(128)))
    assert took < 2 * step + COMPARED


def test_rows_that_are_compared_later_are_all_that_is_kept() -> None:
    engine: Any = Engine()
    kept = 2 * sum(place < n for place in PLACES for n in SIZES)
    longest = 2 * max(SIZES)  # as the engine answers it, and a copy
    took = peak(lambda: row_invariance(engine, np.arange(24)))
    assert took < (kept + longest) * ROW + COMPARED < 2 * sum(SIZES) * ROW


# evaluating


def lazily(value: ir.Value) -> None:
    """Let an initializer be made whenever it is read, as bf16 weights are."""
    array = value.const_value.numpy().copy()  # type: ignore[union-attr]
    value.const_value = lazy(array.copy, ir.DataType.FLOAT, array.shape, value.name or "")


def tables(model: ir.Model) -> list[ir.Value]:
    values = model.graph.initializers.values()
    return [v for v in values if v.shape is not None and VOCABULARY in v.shape.numpy()]


def test_a_reduced_host_holds_no_whole_vocabulary() -> None:
    host = grafted("anchors", TinyDecoder(vocabulary=VOCABULARY))
    for value in tables(host):
        lazily(value)
    reduced = reduce_host(host)
    gc.collect()
    tracemalloc.start()
    try:
        hold_weights(reduced.model)
        held = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    assert held < 2 * reduced.size + (1 << 20) < tables(host)[0].const_value.nbytes  # type: ignore[union-attr]


def test_the_oracle_reads_a_tied_embedding_once() -> None:
    host = grafted("anchors", TinyDecoder(vocabulary=VOCABULARY))
    table = tables(host)[0]
    lazily(table)
    tied = ir.Value(name="tied", shape=table.shape, type=table.type, const_value=table.const_value)
    host.graph.register_initializer(tied)
    size = table.const_value.nbytes  # type: ignore[union-attr]
    assert peak(lambda: prepare(host)) < 1.5 * size


# files


def is_mapped(file: Path) -> bool:
    return str(file) in Path("/proc/self/maps").read_text(encoding="utf-8")


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux says what is mapped")
def test_no_file_stays_mapped_behind_the_oracle(tmp_path: Path) -> None:
    host = grafted("anchors", TinyDecoder())
    ir.save(host, tmp_path / "host.onnx", external_data="weights", size_threshold_bytes=0)
    stored = ir.load(tmp_path / "host.onnx")
    found = run(stored, decoder_feed(61))
    assert not is_mapped(tmp_path / "weights")
    stored.graph.initializers["embed.weight"].const_value.numpy()  # type: ignore[union-attr]
    assert is_mapped(tmp_path / "weights"), "as long as the tensor lives"
    np.testing.assert_array_equal(found["logits"], run(host, decoder_feed(61))["logits"])


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux says what is mapped")
def test_no_file_stays_mapped_behind_the_own_model(tmp_path: Path) -> None:
    folder = tiny("llama", tmp_path / "llama")
    dtypes = {s.dtype for s in read_headers(sorted(folder.glob("*.safetensors"))).stored.values()}
    model = transformers_model(folder, dtypes, 1000)
    gc.collect()
    gc.disable()  # or it may run by chance
    try:
        own = model({"tokens": np.asarray([[1, 2, 3]])}, silent)
        assert isinstance(own, Own)
        assert not is_mapped(folder)
    finally:
        gc.enable()


def test_a_reference_session_packs_nothing_and_answers_alike(tmp_path: Path) -> None:
    host = grafted("anchors", TinyDecoder())
    ir.save(host, tmp_path / "host.onnx", external_data="weights", size_threshold_bytes=1024)
    feed, entry = decoder_feed(61), "session.disable_prepacking"
    packed, plain = open_graph(tmp_path / "host.onnx", 1), open_reference(tmp_path / "host.onnx")
    assert plain.get_session_options().get_session_config_entry(entry) == "1"
    one, other = (session.run(["logits"], feed)[0] for session in (packed, plain))
    assert gaps(one.reshape(-1, 61), other.reshape(-1, 61)).max() < LEAST
