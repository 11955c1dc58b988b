"""best-path: a path through vertices, found in the graph, and held to the plain form."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from graftline.errors import LawBroken, NotApplicable
from graftline.evaluate import Feed, run
from graftline.facts import DagRecogniserFacts, read_facts, write_facts
from graftline.kinds.dag_recogniser import DagRecogniser
from graftline.passes import GRAFTS, Pipeline
from graftline.passes.anchors.dag_recogniser import find_dag_recogniser
from graftline.passes.anchors.roles import OnePass
from graftline.path_search import PathSearch
from graftline.ports import read_ports
from tests.kinds.dags import DAG, FIXED
from tests.kinds.latent_decoders import model_of
from tests.kinds.recognisers import PARAFORMER
from tests.kinds.test_recogniser import canonical as recogniser


def canonical(text: str = DAG) -> tuple[ir.Model, Feed]:
    model = model_of(text, seed=1)
    found = find_dag_recogniser(model.graph)
    assert isinstance(found, OnePass)
    write_facts(model, found.facts)
    Pipeline.parse("canonicalize-one-pass", GRAFTS).run(model)
    return model, DagRecogniser().feed(read_ports(model), found.facts, 0)


def grafted(passes: str, text: str = DAG) -> tuple[ir.Model, Feed]:
    model, feed = canonical(text)
    Pipeline.parse(passes, GRAFTS).run(model, feed)
    return model, feed


def test_before_and_after() -> None:
    before, feed = canonical()
    after, _ = grafted("best-path{pad=3}")
    outputs = {p.name: p.shape for p in read_ports(before) if p.direction == "out"}
    assert outputs == {
        "scores": ("B", "L", 11), "transitions": ("B", "L", "L"), "states": ("B", "L", 8),
        "vertices": ("B",),
    }  # fmt: skip
    outputs = {p.name: p.shape for p in read_ports(after) if p.direction == "out"}
    assert outputs == {"scores": ("B", "U", 11), "states": ("B", "U", 8), "counts": ("B",)}
    facts = read_facts(after)
    assert isinstance(facts, DagRecogniserFacts)
    assert facts.search == PathSearch("lookahead", 1.0, 3)
    made = run(after, feed)
    assert 3 not in made["scores"].argmax(-1)[0, : made["counts"][0]]
    assert made["scores"].shape[1] == made["counts"].max() < run(before, feed)["vertices"].max()


@pytest.mark.parametrize(("text", "doublings"), [(DAG, 16), (FIXED, 5)])
def test_a_walk_of_n_steps_takes_log_n_gathers_and_no_loop(text: str, doublings: int) -> None:
    after, _ = grafted("best-path", text)
    types = [n.op_type for n in after.graph]
    assert not {"Loop", "Scan", "If"} & set(types)
    walks = [n for n in after.graph if n.op_type == "GatherElements"]
    assert len(walks) == 2 * doublings + 3  # the tokens on the walk, those before, and the path


@pytest.mark.parametrize("passes", [
    "best-path{by=joint-viterbi}", "best-path{by=joint-viterbi,longest=3,penalty=0}",
    "best-path{by=joint-viterbi,longest=1}", "best-path{by=joint-viterbi,beta=0.5,pad=2}",
])  # fmt: skip
def test_joint_viterbi_is_written_out(passes: str) -> None:
    before, feed = canonical()
    after = before.clone()
    (report,) = Pipeline.parse(passes, GRAFTS).run(after, feed)
    laws = {w.law: w.status for w in report.laws}
    assert laws["neutral"] == laws["paths"] == "held"
    assert not {"Loop", "Scan", "If"} & {n.op_type for n in after.graph}
    facts, made = read_facts(after), run(after, feed)
    assert isinstance(facts, DagRecogniserFacts)
    assert facts.search is not None
    assert 1 <= made["counts"].min() <= made["counts"].max() <= facts.search.longest


def test_a_row_without_a_count_has_all_vertices() -> None:
    text = DAG.replace(", int64[B] graph_sizes)", ")").replace(
        "Max (halved, two)", "Max (full, two)"
    )
    text = text.replace("  graph_sizes =", "  full = Mul (lengths, two)\n  graph_sizes =")
    model, feed = canonical(text)
    assert "vertices" not in {p.role for p in read_ports(model)}
    Pipeline.parse("best-path", GRAFTS).run(model, feed)
    assert run(model, feed)["counts"].min() > 1


@pytest.mark.parametrize(
    ("passes", "message"),
    [
        ("best-path{by=viterby}", "unknown search 'viterby'"),
        ("best-path{beta=-1}", "beta must be 0 or more"),
        ("best-path{longest=9}", "penalty and longest are of by=joint-viterbi"),
        ("best-path{by=joint-viterbi,longest=0}", "longest must be 1 to 1024 vertices"),
        ("best-path{by=joint-viterbi,penalty=-1}", "penalty must be 0 or more"),
        ("best-path{pad=11}", "pad must be a token, 0 to 10, or -1"),
        ("best-path | best-path", "needs a recogniser that scores transitions"),
        ("join", "join needs a path to decode; put best-path before it"),
        ("best-path | join", "beside the dag-recogniser; name its graph in the spec"),
    ],
)
def test_refusals(passes: str, message: str) -> None:
    with pytest.raises(NotApplicable, match=message):
        grafted(passes)


def test_other_recognisers_have_no_paths() -> None:
    with pytest.raises(NotApplicable, match="needs a recogniser that scores transitions"):
        Pipeline.parse("best-path", GRAFTS).run(recogniser(PARAFORMER))


@pytest.mark.parametrize(
    ("was", "now", "message"),
    [
        ("logs = LogSoftmax <axis = -1> (safe)", "logs = Identity (safe)",
         r"'transitions': the chances on from vertex 0 of row 0 sum to"),
        ("later = Greater (place, column)", "later = GreaterOrEqual (place, column)",
         r"'transitions': a vertex of row 0 leads back, or to itself"),
        ("logs = LogSoftmax <axis = -1> (safe)", "logs = Softmax <axis = -1> (safe)",
         r"'transitions': .*; they must be logarithms of the chances"),
    ],
)  # fmt: skip
def test_transitions_are_recognised_by_their_values(was: str, now: str, message: str) -> None:
    with pytest.raises(LawBroken, match=message):
        grafted("best-path", DAG.replace(was, now))


def test_positions_are_padded() -> None:
    after, feed = grafted("best-path | pad-positions{positions=16}", FIXED)
    shapes = {p.role: p.shape for p in read_ports(after) if p.direction == "out"}
    assert (shapes["scores"], shapes["states"]) == (("B", 16, 11), ("B", 16, 8))
    made, whole = run(after, feed), run(grafted("best-path", FIXED)[0], feed)
    most = int(whole["counts"].max())
    for role in ("scores", "states"):
        assert np.array_equal(made[role][:, :most], whole[role])
