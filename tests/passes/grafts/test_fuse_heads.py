"""fuse-heads: heads of one row draft the next tree in the step, and its law sees where they do not.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from graftline.errors import LawBroken, NotApplicable
from graftline.evaluate import run
from graftline.models.decoder import TinyDecoder
from graftline.passes import GRAFTS, Pipeline
from graftline.passes.grafts import fuse_heads
from graftline.passes.grafts.head_parts import HEADS
from graftline.ports import read_ports
from tests.passes.grafts.test_draft_heads import FORMS, VOCABULARY, graph_of
from tests.passes.tiny_hosts import decoder_feed, host

FRONT = "anchors | kv-cache | tree-mask | select-rows | tap{layers=norm} | reduce-logits"
FUSED = f"{FRONT} | fuse-verify | fuse-heads{{topk=4}}"


@pytest.fixture(params=FORMS, scope="module")
def heads(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> ir.Model:
    return graph_of(tmp_path_factory.mktemp("head"), *FORMS[request.param])


@pytest.fixture(scope="module")
def plain_heads(tmp_path_factory: pytest.TempPathFactory) -> ir.Model:
    return graph_of(tmp_path_factory.mktemp("head"))


def made(text: str, heads: ir.Model | None, laws: bool = False) -> tuple[ir.Model, dict[str, str]]:
    """A tiny host after a pipeline, and the laws of its last pass."""
    model = host(TinyDecoder())
    if heads is not None:
        model.meta[HEADS] = heads
    feed = decoder_feed(VOCABULARY) if laws else None
    reports = Pipeline.parse(text, GRAFTS).run(model, feed)
    return model, {row.law: row.text for row in reports[-1].laws}


@pytest.mark.parametrize("sample", ["", "{sample=true}"])
def test_the_laws_hold_for_every_form_of_heads(heads: ir.Model, sample: str) -> None:
    _, laws = made(FUSED.replace("fuse-verify", f"fuse-verify{sample}"), heads, laws=True)
    assert "outputs are the host's" in laws["neutral"]
    rows = laws["drafted-by-heads"].partition(", where paths end")[0]
    ends = {int(row) for row in rows.removeprefix("heads read the rows ").split(", ")}
    assert len(ends) > 1, "one row for all would not tell which is read"


def test_before_and_after(plain_heads: ir.Model) -> None:
    before, after = (
        {p.name: p for p in read_ports(made(text, plain_heads)[0])}
        for text in (f"{FRONT} | fuse-verify", FUSED)
    )
    added = [(p.name, p.owner, p.shape, p.mirror) for n, p in after.items() if n not in before]
    assert added == [
        ("template.parents", "target", ("M",), None),
        ("template.depths", "target", ("M",), None),
        ("template.ranks", "target", ("M",), None),
        ("heads.topk_ids", "head.0", ("B", 1, 4, 4), None),
        ("heads.topk_logits", "head.0", ("B", 1, 4, 4), None),
        ("next.tokens", "target", ("B", "M"), "tokens"),
        ("next.parents", "target", ("B", "M"), "parents"),
    ]


def test_heads_run_for_one_row_of_a_tree(plain_heads: ir.Model) -> None:
    """What a graft after the verification is for: draft-heads before it scores every node."""
    model, _ = made(FUSED, plain_heads)
    roles = {"draft_heads.layer", "draft_heads.scores"}
    mine = [n for n in model.graph if n.metadata_props.get("graftline.role") in roles]
    assert len(mine) == 1 + 4, "the layers of all heads, and a matrix each"
    for node in mine:
        shape = node.outputs[0].shape
        assert shape is not None
        assert shape[1] == 1, node


def test_the_tree_is_of_the_last_accepted_row(plain_heads: ir.Model) -> None:
    """Beside the heads' own published graph, for a path that ends at node 2 of 4."""
    model, _ = made(FUSED, plain_heads)
    feed: dict[str, Any] = {
        "tokens": np.asarray([[5, 9, 9, 7]]), "parents": np.asarray([[-1, 0, 0, -1]]),
        "write_index": np.zeros(1, np.int64),
        "template.parents": np.asarray([-1, 0, 1, 1]), "template.depths": np.asarray([0, 1, 2, 2]),
        "template.ranks": np.asarray([0, 1, 0, 3]),
    }  # fmt: skip
    for port in read_ports(model):
        if port.role in ("cache.key", "cache.value") and port.direction == "in":
            feed[port.name] = np.full((1, port.shape[1], 16, port.shape[3]), 1e3, np.float32)
    chosen = run(model, feed)["argmax"][0, 0]
    feed["tokens"] = np.asarray([[5, (chosen + 1) % VOCABULARY, chosen, 7]])
    got = run(model, feed)
    assert got["path"][0].tolist() == [0, 2, -1, -1]
    logits = run(plain_heads, {"hidden": got["hidden.norm"][:, 2:3]})["heads.logits"][0, 0]
    best = np.argsort(-logits, axis=-1)
    expected = [got["accepted"][0, 1], best[0, 1], best[1, 0], best[1, 3]]
    assert got["next.tokens"][0].tolist() == expected
    assert got["next.parents"][0].tolist() == [-1, 0, 1, 1]


def test_refusals(plain_heads: ir.Model, tmp_path: Path) -> None:
    def refused(text: str, heads: ir.Model | None = plain_heads) -> str:
        with pytest.raises(NotApplicable) as caught:
            made(text, heads)
        return str(caught.value)

    verified = f"{FRONT} | fuse-verify"
    assert "put fuse-verify before it" in refused(f"{FRONT} | fuse-heads")
    assert "give them: --head PATH" in refused(f"{verified} | fuse-heads", None)
    untapped = verified.replace(" | tap{layers=norm}", "")
    assert "put tap{layers=norm} before it" in refused(f"{untapped} | fuse-heads")
    assert "already drafts its next tree" in refused(f"{FUSED} | fuse-heads")
    assert "already drafts its next tree" in refused(f"{verified} | fuse-draft | fuse-heads")
    assert "the heads score 61 tokens" in refused(f"{verified} | fuse-heads{{topk=62}}")
    wide = graph_of(tmp_path, spec=TinyDecoder())
    on_all = f"{FRONT} | draft-heads{{topk=4}} | fuse-verify | fuse-heads"
    assert "has draft heads already" in refused(on_all, wide)


Wrong = Callable[[str], str]


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ("_LAST", lambda t: t.replace("ReduceMax (path, axis_1)", "Mul (ReduceMax (path, axis_1), "
                                      "zero)")),
        ("_LAST", lambda t: t.replace("ReduceMax (path", "ReduceSum (path")),
        ("_TREE", lambda t: t.replace("Sub (depths, one)", "Sub (depths, two)")),
        ("_TREE", lambda t: t.replace("width), ranks)", "width), Max (Sub (ranks, one), zero))")),
        ("_TREE", lambda t: t.replace("Mul (head, width)", "Mul (head, one)")),
        ("_TREE", lambda t: t.replace("parents = Expand (Unsqueeze (above, axis_0)",
                                      "parents = Expand (Sub (Unsqueeze (above, axis_0), one)")),
    ],
    ids=["roots-state", "another-rows-state", "depth-off", "rank-off", "head-off", "parent-off"],
)  # fmt: skip
def test_the_law_catches_a_wrong_draft(
    plain_heads: ir.Model, monkeypatch: pytest.MonkeyPatch, text: str, wrong: Wrong
) -> None:
    right = getattr(fuse_heads, text)
    assert wrong(right) != right
    monkeypatch.setattr(fuse_heads, text, wrong(right))
    with pytest.raises(LawBroken, match="breaks the law 'drafted-by-heads' at"):
        made(FUSED, plain_heads, laws=True)


def test_the_law_catches_heads_that_read_before_the_norm(
    plain_heads: ir.Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = fuse_heads.value_of

    def before(model: ir.Model, port: Any) -> ir.Value:
        value = real(model, port)
        maker = value.producer()
        norm = None if maker is None or maker.inputs[0] is None else maker.inputs[0].producer()
        assert norm is not None
        assert norm.inputs[0] is not None
        return norm.inputs[0]

    monkeypatch.setattr(fuse_heads, "value_of", before)
    with pytest.raises(LawBroken, match=r"'drafted-by-heads' at 'heads\.topk_logits'"):
        made(FUSED, plain_heads, laws=True)
