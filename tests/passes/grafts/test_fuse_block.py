"""fuse-block: a block drafts the next chain in the step, and its law sees where it does not."""

from __future__ import annotations

import onnx_ir as ir
import pytest

from graftline.errors import LawBroken, NotApplicable
from graftline.facts import DraftBlockFacts, read_facts, write_facts
from graftline.models.decoder import TinyDecoder
from graftline.owners import HEAD
from graftline.passes import GRAFTS, Pipeline
from graftline.passes.grafts.block_copy import BLOCK_GRAPH, DRAFTED_ATTENTION
from graftline.passes.laws import fused_block
from graftline.passes.laws.common import infer_shapes
from graftline.passes.pipeline.graft import ROLE
from graftline.ports import read_ports
from tests.passes.tiny_hosts import decoder_feed
from tests.tiny_block import PASSES, SPEC, block_export, block_graph

FRONT = "anchors | kv-cache | tree-mask | select-rows | tap{layers=norm} | reduce-logits"
FUSED = f"{FRONT} | fuse-verify | fuse-block{{depth=3}}"


def made(
    text: str, block: ir.Model | None, laws: bool = False, spec: TinyDecoder = SPEC
) -> tuple[ir.Model, dict[str, str]]:
    """A tiny host after a pipeline, and the laws of its last pass."""
    model = spec.build()
    infer_shapes(model)
    if block is not None:
        model.meta[BLOCK_GRAPH] = block
    feed = decoder_feed(spec.vocabulary) if laws else None
    reports = Pipeline.parse(text, GRAFTS).run(model, feed)
    return model, {row.law: row.text for row in reports[-1].laws}


@pytest.mark.parametrize("sample", ["", "{sample=true}"])
@pytest.mark.parametrize("drafted", [0, 30], ids=["all", "some"])
def test_the_laws_hold(sample: str, drafted: int) -> None:
    """Also of a head that scores some tokens of its host's."""
    text = FUSED.replace("fuse-verify", f"fuse-verify{sample}")
    _, laws = made(text, block_graph(drafted=drafted), laws=True)
    assert "outputs are the host's" in laws["neutral"]
    told = laws["drafted-by-block"]
    assert told.startswith("9 drafts behind the rows ")
    ends = {int(row) for row in told.partition("rows ")[2].partition(", and")[0].split(", ")}
    assert len(ends) > 1, "one row for all would not tell which is read"


def test_the_lowered_step_is_the_step() -> None:
    """On both backends; on TensorRT a step commits what the last one accepted."""
    for back in ("lower-ort", "lower-tensorrt{dtype=fp32,capacity=90}"):
        _, laws = made(f"{FUSED} | {back}", block_graph(), laws=True)
        assert "outputs are the host's" in laws["neutral"]
    assert "rows are moved by the step after" in laws["deferred"]


def test_before_and_after() -> None:
    before, after = (
        {p.name: p for p in read_ports(made(text, block_graph())[0])}
        for text in (f"{FRONT} | fuse-verify", FUSED)
    )
    added = [(p.name, p.owner, p.shape, p.mirror) for n, p in after.items() if n not in before]
    cache = ("B", 2, "S", 16)
    assert added == [
        ("template.parents", "target", ("M",), None),
        ("head.0.cache.0.key", "head.0", cache, None),
        ("head.0.cache.0.value", "head.0", cache, None),
        ("head.0.cache.0.key.out", "head.0", cache, "head.0.cache.0.key"),
        ("head.0.cache.0.value.out", "head.0", cache, "head.0.cache.0.value"),
        ("head.0.draft.logits", "head.0", ("B", 3), None),
        ("next.tokens", "target", ("B", "M"), "tokens"),
        ("next.parents", "target", ("B", "M"), "parents"),
    ]
    assert after["head.0.cache.0.key"].valid_by == "write_index"


def test_the_head_reads_what_is_accepted_once_and_then_single_rows() -> None:
    """What a fused chain saves: its caches are written once a step, whatever it drafts, and its
    lm_head scores a row for each draft."""
    model, _ = made(FUSED, block_graph())
    own = {v for v in model.graph.inputs if (v.name or "").startswith(f"{HEAD}.")}
    written = [n for n in model.graph if n.op_type == "TensorScatter" and n.inputs[0] in own]
    assert len(written) == len(own) == 2
    roles = [n.metadata_props.get(ROLE) for n in model.graph]
    assert (roles.count("attention"), roles.count(DRAFTED_ATTENTION)) == (2, 2)
    scored = [n for n in model.graph if n.metadata_props.get(ROLE) == f"{HEAD}.lm_head"]
    assert [n.outputs[0].shape[1] for n in scored] == [1, 1, 1]  # type: ignore[index]
    assert len({n.inputs[1] for n in scored} | {None}) <= 4
    names = [n for n in model.graph.initializers if n.startswith(f"{HEAD}.lm_head")]
    assert len(names) == 1, "one matrix for all"


def test_the_law_asks_for_paths_that_end_at_several_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fused_block, "LENGTHS", ((1,),))
    with pytest.raises(LawBroken, match=r"'drafted-by-block' .* every path ends at row \{\d+\}"):
        made(FUSED, block_graph(), laws=True)


def test_refusals() -> None:
    block = block_graph()

    def refused(text: str, given: ir.Model | None = block) -> str:
        with pytest.raises(NotApplicable) as caught:
            made(text, given)
        return str(caught.value)

    verified = f"{FRONT} | fuse-verify"
    assert "put fuse-verify before it" in refused(f"{FRONT} | fuse-block")
    assert "(EAGLE's); give it: --head PATH" in refused(f"{verified} | fuse-block", None)
    untapped = verified.replace(" | tap{layers=norm}", "")
    assert "put tap{layers=norm} or head-features before it" in refused(f"{untapped} | fuse-block")
    assert "already drafts its next tree" in refused(f"{FUSED} | fuse-block")
    assert "depth is 1 to 16, not 17" in refused(f"{verified} | fuse-block{{depth=17}}")
    wide = block_graph(TinyDecoder(layers=1, hidden=64))
    assert "reads features of 64, and the host's have 32" in refused(FUSED, wide)
    assert "attention depends on distance" in refused(
        FUSED, block_graph(TinyDecoder(layers=2, window=3))
    )
    bare = block_export()
    Pipeline.parse(PASSES.replace(" | tree-mask", "") + " | features", GRAFTS).run(bare)
    assert "the head's graph has no input 'mask'; give its passes" in refused(FUSED, bare)
    facts = read_facts(masked := block.clone())
    assert isinstance(facts, DraftBlockFacts)
    write_facts(masked, DraftBlockFacts(**{**_fields(facts), "mask_token": 3}))
    assert "token by token over a cache of its own (EAGLE's); use" in refused(FUSED, masked)


def _fields(facts: DraftBlockFacts) -> dict[str, object]:
    return {k: v for k, v in vars(facts).items() if k != "kind"}
