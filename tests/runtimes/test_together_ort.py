"""On ONNX Runtime the rows of several sequences in one call are what each is alone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from graftline.bundle.store import save_graph
from graftline.bundle.weight_file import WeightFile
from graftline.facts import decoder_facts
from graftline.models.decoder import TinyDecoder
from graftline.passes import GRAFTS, Pipeline
from graftline.passes.laws.common import infer_shapes
from graftline.ports import read_ports
from graftline.runtimes.draft_engine import DraftEngine, OwnCaches, Read
from graftline.runtimes.draft_reader import Reader
from graftline.runtimes.draft_seats import OwnSeats, TargetSeats
from graftline.runtimes.ort.cuda import CudaSession
from graftline.runtimes.ort.session import OrtSession
from graftline.runtimes.session import Scores
from tests.rounding import assert_same_sums, decoder_terms

VOCABULARY, CAPACITY = 61, 60
SHAPE = TinyDecoder(layers=2)
TERMS = decoder_terms(SHAPE, 64)
PASSES = {
    "draft": "anchors | kv-cache | select-rows | reduce-logits | pack-projections | lower-ort",
    "target": "anchors | kv-cache | tree-mask | select-rows | tap{layers=norm} | lower-ort",
}
Open = Callable[[type[OrtSession]], OrtSession]


@pytest.fixture(scope="module", params=list(PASSES))
def opened(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Open:
    """Sessions of a graph as drafts have it, and as targets do: with a mask, without candidates."""
    folder: Path = tmp_path_factory.mktemp("draft")
    model = SHAPE.build()
    infer_shapes(model)
    Pipeline.parse(PASSES[request.param], GRAFTS).run(model)
    save_graph(model, folder / "g.onnx", WeightFile(folder, "g.weights", lambda size: None), {})
    graph, facts, ports = folder / "g.onnx", decoder_facts(model), read_ports(model)

    def make(kind: type[OrtSession]) -> OrtSession:
        device = {"device": "cpu"} if kind is CudaSession else {}
        return kind(graph, facts, ports, capacity=CAPACITY, threads=1, **device)

    return make


@pytest.fixture(params=[OrtSession, CudaSession], ids=["cpu", "cuda"])
def session(request: pytest.FixtureRequest, opened: Open) -> OrtSession:
    """With `cuda`, the code for caches on a device, on the processor."""
    return opened(request.param)


def check(scores: Scores, alone: Scores) -> None:
    found, wanted = scores.parts(), alone.parts()
    for key in wanted.keys() - {"argmax", "topk_ids"}:
        scale = np.abs(alone.logits).max() if isinstance(key, str) else None
        assert_same_sums(found[key], wanted[key], TERMS, scale)
    assert np.array_equal(scores.argmax, alone.argmax)


def test_sequences_that_come_and_go_read_on_as_each_does_alone(session: OrtSession) -> None:
    """Whatever some of them read together, it is what a fresh session makes of the whole text."""
    random = np.random.default_rng(3)
    engine = OwnCaches(session, 1.0)
    fresh = session.sibling()
    readers: list[Reader] = []
    for turn in range(40):
        if len(readers) < 2 or (len(readers) < 9 and random.random() < 0.3):
            readers.append(Reader(engine))
            readers[-1].start(random.integers(0, VOCABULARY, int(random.integers(1, 30))).tolist())
        elif random.random() < 0.2:
            del readers[int(random.integers(len(readers)))]
        asked = [reader for reader in readers if random.random() < 0.7]
        ahead = random.integers(0, VOCABULARY, turn % 4).tolist()
        reads: dict[Read, Reader] = {reader.read(ahead): reader for reader in asked}
        for read, scores in engine.answers(list(reads)):
            text = [*reads[read].tokens, *ahead]
            check(scores, fresh.follow(0, 0, text))
        for reader in readers:
            reader.append(random.integers(0, VOCABULARY, int(random.integers(1, 3))).tolist())
        readers = [reader for reader in readers if len(reader.tokens) < CAPACITY - 6]
    assert len(session.lengths) >= 2


def test_a_target_never_sees_what_drafts_of_some_of_its_sequences_wrote(
    session: OrtSession,
) -> None:
    random = np.random.default_rng(4)
    prompts = [random.integers(0, VOCABULARY, size) for size in (5, 17, 3, 9)]
    session.reset(4)
    session.prefill(prompts)
    engine = DraftEngine(session.sibling(session), TargetSeats(session), 1.0)
    readers = [Reader(engine) for _ in prompts]
    for row, reader in enumerate(readers):
        reader.start([*prompts[row].tolist(), 7])
        reader.sit(row)
    expected = session.score(np.full((4, 1), 7)).logits.copy()
    fresh = session.sibling()
    for ahead in ([], [1], [1, 2]):
        reads = {readers[row].read(ahead): row for row in (0, 2, 3)}
        for read, scores in engine.answers(list(reads)):
            check(scores, fresh.follow(0, 0, [*prompts[reads[read]].tolist(), 7, *ahead]))
    assert np.array_equal(session.score(np.full((4, 1), 7)).logits, expected)


def test_sub_models_over_one_set_of_caches_have_one_set_of_seats(opened: Open) -> None:
    whole = opened(OrtSession)
    seats = OwnSeats(whole)
    pair = [DraftEngine(whole.sibling(whole), seats, 1.0) for _ in range(2)]
    readers = [Reader(pair[place % 2]) for place in range(3)]
    for reader in readers:
        reader.start([1, 2, 3])
    assert [reader.seat.row for reader in readers] == [0, 1, 2]
    del reader, readers[1]
    taken = Reader(pair[0])
    taken.start([4, 5])
    assert [r.seat.row for r in (*readers, taken)] == [0, 1, 2]
    assert len(whole.lengths) == 3
