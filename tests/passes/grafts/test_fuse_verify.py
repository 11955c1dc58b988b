"""fuse-verify: the step says what the host's rule says, in place, and is caught when it does not.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from graftline.build.compiled import compile_graph
from graftline.bundle.store import load_graph, save_graph
from graftline.bundle.weight_file import WeightFile
from graftline.errors import LawBroken, NotApplicable
from graftline.evaluate import run
from graftline.models.decoder import TinyDecoder
from graftline.passes import GRAFTS, Pipeline
from graftline.passes.grafts.fuse_verify import FuseVerify
from graftline.passes.grafts.kv_cache import empty_caches
from graftline.passes.laws.common import infer_shapes
from graftline.plugins.spec import DOMAIN
from graftline.ports import by_role, read_ports
from tests.passes.grafts.fused_run import FRONT, LOWERED, FusedRun, build
from tests.passes.tiny_hosts import decoder_feed

HOSTS = {
    "grouped": TinyDecoder(),
    "window": TinyDecoder(window=3, layers=3),
    "alibi": TinyDecoder(alibi=True),
    "head-of-4": TinyDecoder(head_size=4),
}
VERIFY = f"{FRONT} | fuse-verify"


def laws(graft: FuseVerify, spec: TinyDecoder = HOSTS["grouped"]) -> list[str]:
    """The laws that hold for one graft behind the usual ones."""
    model = build("anchors | kv-cache | tree-mask | reduce-logits", spec)
    feed = decoder_feed(61)
    for earlier in Pipeline.parse("kv-cache | tree-mask", GRAFTS).grafts:
        feed = earlier.neutral(feed, model)
    return [law.law for law in Pipeline((graft,)).run(model, feed)[0].laws]


@pytest.mark.parametrize(
    ("host", "option"), [*((name, "") for name in HOSTS), ("grouped", "{sample=true}")]
)
def test_the_laws_hold_on_every_kind_of_host(host: str, option: str) -> None:
    model = HOSTS[host].build()
    infer_shapes(model)
    reports = Pipeline.parse(VERIFY + option + LOWERED, GRAFTS).run(model, decoder_feed(61))
    held = next(r for r in reports if r.text.startswith("fuse-verify")).laws
    told = next(law.text for law in held if law.law == "fused")
    assert "(0 drafts stand)" not in told


def test_before_and_after() -> None:
    before, after = build(FRONT, HOSTS["grouped"]), build(VERIFY, HOSTS["grouped"])
    was, now = ([v.name for v in m.graph.inputs if "cache" not in (v.name or "")]
                for m in (before, after))  # fmt: skip
    assert was == ["tokens", "positions", "write_index", "mask", "rows"]
    assert now == ["tokens", "write_index", "parents"]
    calls = Counter(n.op_type for n in after.graph if n.domain == DOMAIN)
    assert calls == {"TreeVerify": 1, "KVCommit": 4}
    out = {p.name: (p.shape, p.mirror) for p in read_ports(after) if p.direction == "out"}
    assert out["accepted"] == out["path"] == (("B", "N"), None)
    assert out["count"] == (("B",), None)
    assert out["next.write_index"] == (("B",), "write_index")
    assert out["cache.1.key.committed"] == (("B", 2, "S", 16), "cache.1.key")
    assert out["logits"] == (("B", "N", 61), None), "every row is scored"


def test_sampling_adds_its_settings_and_counts_tokens() -> None:
    ports = read_ports(build(f"{VERIFY}{{sample=true}}", HOSTS["grouped"]))
    settings = [p.name for p in ports if p.direction == "in" and p.shape == ("B",)]
    assert settings == ["write_index", "temperature", "min_p", "seed", "ordinal"]
    assert by_role(ports, "next.ordinal")[0].mirror == "ordinal"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("anchors | kv-cache | reduce-logits | fuse-verify", "put kv-cache | tree-mask before it"),
        ("anchors | kv-cache | tree-mask | fuse-verify", "put reduce-logits before it"),
        (f"{VERIFY} | fuse-verify", "already verifies its tree"),
    ],
)
def test_refusals(text: str, message: str) -> None:
    with pytest.raises(NotApplicable) as caught:
        build(text, HOSTS["grouped"])
    assert message in str(caught.value)


class BlindChain(FuseVerify):
    """Made wrong on purpose: rows count up, as in a chain, whatever their depth."""

    def apply(self, model: ir.Model) -> None:
        super().apply(model)
        place = next(n for n in model.graph if n.outputs[0].name == "tree.positions")
        rows = next(n for n in model.graph if n.op_type == "Range")
        place.replace_input_with(1, rows.outputs[0])


class SeesSiblings(FuseVerify):
    """Made wrong on purpose: a row sees every row of the step."""

    def apply(self, model: ir.Model) -> None:
        super().apply(model)
        scatter = next(n for n in model.graph if n.op_type == "ScatterElements")
        reach = scatter.inputs[2]
        hidden = ir.node("Not", [reach])
        every = ir.node("Or", [reach, hidden.outputs[0]])
        model.graph.insert_before(scatter, [hidden, every])
        scatter.replace_input_with(2, every.outputs[0])


class CommitsNothing(FuseVerify):
    """Made wrong on purpose: the caches stay as the step wrote them."""

    def apply(self, model: ir.Model) -> None:
        super().apply(model)
        for node in list(model.graph):
            if node.op_type == "KVCommit":
                count = node.inputs[2]
                assert count is not None
                none = ir.node("Sub", [count, count])
                model.graph.insert_before(node, none)
                node.replace_input_with(2, none.outputs[0])


class OwnTokens(FuseVerify):
    """Made wrong on purpose: every draft stands, because a node chooses what the drafter said."""

    def apply(self, model: ir.Model) -> None:
        super().apply(model)
        verify = next(n for n in model.graph if n.op_type == "TreeVerify")
        verify.replace_input_with(0, verify.inputs[1])


@pytest.mark.parametrize("wrong", [BlindChain, SeesSiblings, CommitsNothing, OwnTokens])
def test_the_law_catches_a_wrong_step(wrong: type[FuseVerify]) -> None:
    assert "fused" in laws(FuseVerify())
    with pytest.raises(LawBroken, match=r"breaks the law '(fused|neutral)'"):
        laws(wrong())


def test_the_law_catches_a_draw_of_another_number() -> None:
    class NextNumber(FuseVerify):
        def apply(self, model: ir.Model) -> None:
            super().apply(model)
            node = next(n for n in model.graph if n.op_type == "Uniforms")
            turn = node.inputs[1]
            assert turn is not None
            later = ir.node("Add", [turn, turn])
            model.graph.insert_before(node, later)
            node.replace_input_with(1, later.outputs[0])

    assert "fused" in laws(FuseVerify(sample=True))
    with pytest.raises(LawBroken, match=r"'fused' at '(path|accepted)'"):
        laws(NextNumber(sample=True))


def test_the_interface_law_catches_an_input_that_is_lost() -> None:
    class Loses(FuseVerify):
        computes = ("positions",)

    with pytest.raises(LawBroken, match="'interface' at inputs: mask gone"):
        laws(Loses())


def test_functions_survive_saving_and_quantizing(tmp_path: Path) -> None:
    text = f"{VERIFY}{{sample=true}} | pack-projections | quantize{{bits=8,block=16}} | lower-ort"
    made = compile_graph(TinyDecoder().build(), f"canonicalize | {text}", lambda line: None)
    assert {n.domain for n in made.canonical.graph} == {"", DOMAIN}
    assert not made.lowered.functions
    store = WeightFile(tmp_path, "w", lambda size: None)
    save_graph(made.canonical, tmp_path / "g.onnx", store, {})
    back = load_graph(tmp_path / "g.onnx")
    assert {f[1] for f in back.functions} == {"TreeVerify", "KVCommit", "Uniforms"}
    feed = {"tokens": np.asarray([[3, 4]]), "parents": np.asarray([[-1, 0]])}
    feed |= empty_caches(back, 1, 8)
    feed |= {n: np.zeros(1, np.int64) for n in ("write_index", "seed", "ordinal")}
    feed |= {n: np.zeros(1, np.float32) for n in ("temperature", "min_p")}
    was, now = run(made.canonical, feed), run(back, feed)
    assert all(np.array_equal(was[name], now[name]) for name in was)


def test_a_commit_costs_two_nodes_a_cache() -> None:
    """The index is computed once for all caches: a layer more is four nodes more than unfused."""
    def grown(text: str) -> int:
        few, many = (len(build(text, TinyDecoder(layers=n)).graph) for n in (2, 5))
        return (many - few) // 3

    assert grown(VERIFY + LOWERED) - grown(FRONT + LOWERED) == 4


def test_caches_are_committed_in_place(capfd: pytest.CaptureFixture[str]) -> None:
    """ONNX Runtime warns of every TensorScatter that copies its cache."""
    def warnings(shared: bool) -> int:
        fused = FusedRun(build(VERIFY + LOWERED, HOSTS["grouped"]), severity=2)
        fused.bound(shared)
        return capfd.readouterr().err.count("in-place optimization not activated")

    assert warnings(shared=False) == 4
    assert warnings(shared=True) == 0
