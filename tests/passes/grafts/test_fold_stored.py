"""fold-stored: what depends on stored numbers alone becomes constants that are no larger."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from graftline.errors import LawBroken, NotApplicable
from graftline.evaluate import Feed, run
from graftline.facts import write_facts
from graftline.kinds.query_decoder import QueryDecoder
from graftline.passes import GRAFTS, Pipeline
from graftline.passes.anchors.query_decoder import find_query_decoder
from graftline.passes.anchors.reduce import weight_bytes
from graftline.passes.anchors.roles import OnePass
from graftline.passes.grafts.fold_stored import FoldStored, folded
from graftline.passes.graph.stored import SMALL, allowed_bytes, fold_stored, stored_nodes
from graftline.ports import read_ports
from tests.kinds.latent_decoders import model_of
from tests.kinds.query_decoders import ALONE, BROADCAST, PIXELS
from tests.kinds.samplers import lines

GONE = ["normed = LayerNormalization", "projected = MatMul(normed", "agnostic = Tanh"]
DRAWN = ALONE.replace("Tanh (projected)", "RandomNormalLike (projected)")


def canonical(text: str) -> tuple[ir.Model, Feed]:
    model = model_of(text)
    found = find_query_decoder(model.graph)
    assert isinstance(found, OnePass)
    write_facts(model, found.facts)
    Pipeline.parse("canonicalize-one-pass", GRAFTS).run(model)
    return model, QueryDecoder().feed(read_ports(model), found.facts, 0)


def folding(model: ir.Model, feed: Feed) -> tuple[str, str]:
    """Fold in place; what the law of folding found on the whole graph, and whether the numeric one
    held."""
    whole = model.clone()
    (structure,) = Pipeline.parse("fold-stored", GRAFTS).run(whole)
    (numbers,) = Pipeline.parse("fold-stored", GRAFTS).run(model, feed)
    assert lines(whole) == lines(model)
    told = {row.law: row.what for row in structure.laws}
    return told["folded"], {row.law: row.status for row in numbers.laws}["neutral"]


def starts(model: ir.Model) -> list[str]:
    return [line for line in lines(model) if line.startswith(tuple(GONE))]


def test_before_and_after() -> None:
    model, feed = canonical(ALONE)
    before = model.clone()
    expected = run(model, feed)["scores"]
    told, held = folding(model, feed)
    assert held == "held"
    assert len(starts(before)) == 3
    assert starts(model) == []
    assert len(before.graph) - len(model.graph) == 3
    assert "spread = Expand(folded.agnostic, all)" in lines(model)
    np.testing.assert_array_equal(run(model, feed)["scores"], expected)
    sizes = weight_bytes(before), weight_bytes(model)
    assert told == (
        "3 nodes that depend on stored numbers alone are constants; "
        f"{sizes[0]:,} bytes of weights became {sizes[1]:,}"
    )
    assert sizes[1] < sizes[0]


@pytest.mark.parametrize(("rows", "is_folded"), [(2000, True), (2100, False)])
def test_a_broadcast_that_is_larger_by_far_stays(rows: int, is_folded: bool) -> None:
    """Rows of 8 numbers of 4 bytes: 2048 are the bytes that a constant may have in any case. What
    stands before it is folded all the same."""
    assert SMALL == 2048 * 32
    model, feed = canonical(BROADCAST.replace("3000", str(rows)))
    expected, size = run(model, feed)["scores"], weight_bytes(model)
    told, held = folding(model, feed)
    assert held == "held"
    np.testing.assert_array_equal(run(model, feed)["scores"], expected)
    assert weight_bytes(model) < size + SMALL * is_folded
    left = [line for line in lines(model) if line.startswith("spread_out")]
    assert left == ([] if is_folded else ["spread_out = Expand(folded.normed, far)"])
    assert ("are left since they would be larger" in told) == (not is_folded)


def test_a_broadcast_of_unknown_size_stays_too() -> None:
    model, _ = canonical(BROADCAST)
    for node in model.graph:
        for value in node.outputs:
            value.shape = None
    fold_stored(model, "fold-stored")
    assert "spread_out = Expand(folded.normed, far)" in lines(model)


def test_a_broadcast_that_fits_no_memory_is_not_made() -> None:
    model, _ = canonical(BROADCAST.replace("3000", str(10**12)))
    Pipeline.parse("fold-stored", GRAFTS).run(model)
    assert "spread_out = Expand(folded.normed, far)" in lines(model)


def test_what_is_drawn_is_no_constant() -> None:
    model, _ = canonical(DRAWN)
    Pipeline.parse("fold-stored", GRAFTS).run(model)
    assert [n.op_type for n in model.graph].count("RandomNormalLike") == 1
    assert not [line for line in starts(model) if not line.startswith("agnostic")]


def test_a_weight_that_others_read_stays(tmp_path: Path) -> None:
    model, feed = canonical(ALONE.replace("MatMul (queries, embed)", "MatMul (queries, project)"))
    Pipeline.parse("fold-stored", GRAFTS).run(model, feed)
    assert "project" in model.graph.initializers
    assert "prototypes" not in model.graph.initializers


def test_a_host_without_stored_numbers_is_refused() -> None:
    model, _ = canonical(PIXELS)
    with pytest.raises(NotApplicable, match=r"no node depends on stored numbers alone .* leave"):
        Pipeline.parse("fold-stored", GRAFTS).run(model)


def test_the_law_sees_a_node_that_is_left() -> None:
    before, _ = canonical(ALONE)
    with pytest.raises(LawBroken, match=r"'folded' at LayerNormalization .*: 1 of 3 nodes"):
        folded(FoldStored(), before, before.clone())


def test_the_law_sees_a_constant_that_is_too_large() -> None:
    before, _ = canonical(ALONE)
    after = before.clone()
    fold_stored(after, "fold-stored")
    assert folded(FoldStored(), before, after)
    held = after.graph.initializers["folded.agnostic"]
    most = max(allowed_bytes(sources) for sources in stored_nodes(before.graph).values())
    held.const_value = ir.tensor(np.zeros(most + 1, np.uint8), name=held.name)
    with pytest.raises(LawBroken, match=r"'folded' at Tanh .*: 65,537 bytes of 65,536"):
        folded(FoldStored(), before, after)
