"""Steps of other forms, without a mask or of several sequences, answer as the target's own step."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from graftline.bundle.reader import MACHINE
from graftline.bundle.store import save_graph
from graftline.bundle.weight_file import WeightFile
from graftline.errors import BackendError
from graftline.facts import decoder_facts
from graftline.models.decoder import TinyDecoder
from graftline.passes import GRAFTS, Pipeline
from graftline.passes.laws.common import infer_shapes
from graftline.ports import read_ports
from graftline.runtimes.ort.forms import Form, Forms
from graftline.runtimes.ort.session import OrtSession
from graftline.runtimes.ort.weights import shared_graphs
from graftline.runtimes.session import FINAL
from tests.rounding import assert_same_sums, decoder_terms

TREES = (
    "anchors | kv-cache | tree-mask | select-rows | tap{layers=norm} | reduce-logits | "
    "pack-projections | lower-ort"
)
CHAINS = TREES.replace(" | tree-mask", "")
GRAPHS = {"trees": TREES, "chains": CHAINS} | {
    f"rows-{n}": f"{CHAINS} | pack-rows{{sequences={n}}}" for n in (2, 4)
}
VOCABULARY = 61
SHAPE = TinyDecoder(layers=2)
TERMS = decoder_terms(SHAPE, 64)


def graphs(folder: Path) -> dict[str, Form]:
    """Every form of a tiny decoder's step, over one file of weights."""
    weights = WeightFile(folder, "g.weights", lambda size: None)
    found: dict[str, Form] = {}
    for name, text in GRAPHS.items():
        model = SHAPE.build()
        infer_shapes(model)
        Pipeline.parse(text, GRAFTS).run(model)
        save_graph(model, folder / f"{name}.onnx", weights, {})
        found[name] = Form(folder / f"{name}.onnx", read_ports(model))
    return found


def opened(forms: dict[str, Form], beside: Forms | None = None) -> OrtSession:
    model = SHAPE.build()
    own = forms["trees"]
    kept = {} if beside is None else {"forms": beside}
    return OrtSession(own.graph, decoder_facts(model), own.ports, capacity=60, threads=1, **kept)


@pytest.fixture(scope="module")
def forms(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Form]:
    return graphs(tmp_path_factory.mktemp("forms"))


@pytest.fixture
def both(forms: dict[str, Form]) -> tuple[OrtSession, OrtSession]:
    """The target alone, and with the other forms."""
    beside = Forms(forms["chains"], {2: forms["rows-2"], 4: forms["rows-4"]}, 1)
    return opened(forms), opened(forms, beside)


def same(one: Any, other: Any, counts: list[int]) -> None:
    assert FINAL in one.taps
    for key in {"logits", "topk_logits", "top_gap", *one.taps}:
        for row, count in enumerate(counts):
            pair = (s.parts()[key][row, :count] for s in (one, other))
            assert_same_sums(*pair, TERMS)
    for row, count in enumerate(counts):
        assert np.array_equal(one.argmax[row, :count], other.argmax[row, :count])


def test_whatever_is_asked_the_answers_are_the_targets(
    both: tuple[OrtSession, OrtSession],
) -> None:
    """Sequences come and go, with any number of rows each, kept in part, cut, in trees at times."""
    rng = np.random.default_rng(5)
    for session in both:
        session.reset(0)
    for turn in range(60):
        held = len(both[0].lengths)
        if held < 2 or (held < 9 and rng.random() < 0.3):
            prompt = rng.integers(0, VOCABULARY, int(rng.integers(1, 20)))
            rows = [s.seat() for s in both]
            same(*(s.read(row, prompt) for s, row in zip(both, rows, strict=True)), [1])
            continue
        if held > 2 and rng.random() < 0.2:
            leaving = int(rng.integers(0, held))
            for session in both:
                session.leave(leaving)
            continue
        counts = [int(n) for n in rng.integers(1, 5, held)]
        if turn % 3 == 0:
            counts = [counts[0]] * held
        tokens = rng.integers(0, VOCABULARY, (held, max(counts)))
        scores = [s.score(tokens, counts=counts) for s in both]
        same(*scores, counts)
        paths = [range(int(rng.integers(0, count + 1))) for count in counts]
        for session in both:
            session.commit(paths)
        if max(both[0].lengths) > 48:
            for session in both:
                session.truncate([int(n) // 2 + 1 for n in session.lengths])
    assert np.array_equal(*(s.lengths for s in both))


def test_chains_of_several_sequences_are_one_call(
    both: tuple[OrtSession, OrtSession], monkeypatch: pytest.MonkeyPatch
) -> None:
    session = both[1]
    session.reset(3)
    session.prefill([np.arange(5), np.arange(9), np.arange(2)])
    calls: list[int] = []
    call = session._packed_call(0, 3)
    run = call._run
    monkeypatch.setattr(call, "_run", lambda binding: (calls.append(1), run(binding))[1])
    alone: list[Any] = []
    monkeypatch.setattr(session, "_run", alone.append)
    session.score(np.zeros((3, 4), np.int64), counts=[4, 1, 2])
    assert calls == [1]
    assert alone == []


def test_what_an_idle_place_writes_nobody_sees(both: tuple[OrtSession, OrtSession]) -> None:
    """Three sequences in a graph for four: the fourth place has a cache of its own."""
    for session in both:
        session.reset(4)
        session.prefill([np.arange(1, 8) * (n + 1) % VOCABULARY for n in range(4)])
        session.leave(3)
    tokens = np.arange(6).reshape(3, 2)
    same(*(s.score(tokens) for s in both), [2, 2, 2])
    same(*(s.score(tokens) for s in both), [2, 2, 2])


def test_trees_keep_to_the_graph_with_a_mask(both: tuple[OrtSession, OrtSession]) -> None:
    depth, mask = np.array([[0, 1, 1]] * 2), np.eye(3, dtype=bool)[None].repeat(2, 0)
    mask[:, :, 0] = True
    for session in both:
        session.reset(2)
        session.prefill([np.arange(4), np.arange(7)])
    tokens = np.array([[1, 2, 3], [4, 5, 6]])
    same(*(s.score(tokens, depth, mask) for s in both), [3, 3])


def test_what_a_batch_needs_is_opened_when_it_is_known(forms: dict[str, Form]) -> None:
    beside = Forms(None, {2: forms["rows-2"], 4: forms["rows-4"]}, 1)
    for sequences, opened in ((1, 0), (2, 1), (3, 2), (32, 2)):
        beside.open(sequences)
        assert beside._open.cache_info().currsize == opened


def test_a_sibling_has_calls_of_its_own(both: tuple[OrtSession, OrtSession]) -> None:
    session = both[1]
    session.reset(2)
    session.prefill([np.arange(4), np.arange(7)])
    tokens = np.array([[1, 2], [3, 4]])
    first = session.score(tokens).logits.copy()
    other = session.sibling()
    other.reset(2)
    other.prefill([np.arange(9), np.arange(3)])
    assert not np.array_equal(other.score(tokens).logits, first)
    assert np.array_equal(session.score(tokens).logits, first)


def test_one_file_of_weights_serves_every_form(forms: dict[str, Form], tmp_path: Path) -> None:
    own = graphs(tmp_path)
    said: list[str] = []
    shared = shared_graphs(tmp_path, {n: f.graph for n, f in own.items()}, "here", said.append)
    assert said == ["laying out the weights for this machine (once)"]
    again = shared_graphs(tmp_path, {n: f.graph for n, f in own.items()}, "here", said.append)
    assert again == shared
    assert len(said) == 1
    moved = {n: Form(shared[n], f.ports) for n, f in own.items()}
    sessions = opened(own), opened(moved, Forms(moved["chains"], {2: moved["rows-2"]}, 1))
    tokens = np.array([[1, 2], [3, 4]])
    answers: list[Any] = []
    for session in sessions:
        session.reset(2)
        session.prefill([np.arange(4), np.arange(7)])
        answers.append(session.score(tokens))
    same(*answers, [2, 2])


@pytest.mark.parametrize("damage", ["cut", "gone", "unreadable"])
def test_what_is_damaged_is_made_again(damage: str, tmp_path: Path) -> None:
    own = {n: f.graph for n, f in graphs(tmp_path).items()}
    folder = shared_graphs(tmp_path, own, "here")["trees"].parent
    weights, sizes = folder / "weights.bin", folder / "sizes.json"
    whole = weights.stat().st_size
    if damage == "cut":
        weights.write_bytes(weights.read_bytes()[:-9])
    elif damage == "gone":
        (folder / "chains.onnx").unlink()
    else:
        sizes.write_text("[")
    said: list[str] = []
    again = shared_graphs(tmp_path, own, "here", said.append)
    assert len(said) == 1
    assert weights.stat().st_size == whole
    assert all(graph.is_file() for graph in again.values())


def test_another_machine_lays_out_its_own(tmp_path: Path) -> None:
    own = {n: f.graph for n, f in graphs(tmp_path).items()}
    folders = {shared_graphs(tmp_path, own, machine)["trees"].parent for machine in ("a", "b")}
    assert len(folders) == 2


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_what_fails_leaves_nothing_half_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    import graftline.runtimes.ort.weights as module

    def fail(*_: object) -> None:
        raise error

    own = {n: f.graph for n, f in graphs(tmp_path).items()}
    monkeypatch.setattr(module, "_moved", fail)
    wanted = BackendError if isinstance(error, OSError) else KeyboardInterrupt
    with pytest.raises(wanted):
        shared_graphs(tmp_path, own, "here")
    assert list((tmp_path / MACHINE).iterdir()) == []


def test_a_full_disk_is_told_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import shutil

    own = {n: f.graph for n, f in graphs(tmp_path).items()}
    usage = type("usage", (), {"free": 1})
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with pytest.raises(BackendError, match=r"are needed, 0\.0 GB are free"):
        shared_graphs(tmp_path, own, "here")


def test_hidden_states_are_read_before_the_next_call(both: tuple[OrtSession, OrtSession]) -> None:
    """Behind it the same memory holds another call's."""
    session = both[0]
    session.reset(2)
    session.prefill([np.arange(3), np.arange(2)])
    scores = session.score(np.asarray([[1], [2]]))
    session.score(np.asarray([[5], [6]]))
    with pytest.raises(BackendError, match="read after the next call"):
        scores.tap(FINAL)
