"""fuse-draft: steps that draft their own next trees give plain decoding's tokens in fewer steps."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import onnx_ir as ir
import pytest

from graftline.errors import LawBroken, NotApplicable
from graftline.evaluate import Array, run
from graftline.models.decoder import TinyDecoder
from graftline.passes import GRAFTS, Pipeline
from graftline.passes.grafts.fuse_draft import FuseDraft
from graftline.plugins.uniforms import UNIFORMS
from graftline.ports import read_ports
from tests.passes.grafts.fused_run import FRONT, LOWERED, FusedRun, build
from tests.passes.tiny_hosts import decoder_feed

HOSTS = {
    "grouped": TinyDecoder(),
    "window": TinyDecoder(window=3, layers=3),
    "alibi": TinyDecoder(alibi=True),
    "head-of-4": TinyDecoder(head_size=4),
}
DRAFT = f"{FRONT} | fuse-verify | fuse-draft{{width=4,levels=4}}"
SAMPLED = DRAFT.replace("fuse-verify", "fuse-verify{sample=true}")
TEMPLATES: dict[str, tuple[Sequence[int], Sequence[int]]] = {
    "no-draft": ((-1,), (0,)),
    "chain": ((-1, 0, 1, 2, 3), (0, 0, 0, 0, 0)),
    "tree": ((-1, 0, 0, 1, 1, 2, 3, 6), (0, 0, 1, 0, 1, 0, 0, 0)),
}
PROMPT = [5, 9, 33, 2, 5, 9]
COUNT = 40


Choose = Callable[[Array, int], int]
"""The token for logits [V] and the number of tokens chosen before it."""


def greedy(logits: Array, turn: int) -> int:
    return int(logits.argmax())


def warm(logits: Array, turn: int) -> int:
    """Temperature 0.9, min_p 0.01, seed 11, in float64."""
    weights = np.exp((logits.astype(np.float64) - logits.max()) / 0.9)
    weights[weights < 0.01] = 0
    seed, step = np.asarray([11]), np.asarray([turn])
    uniform = UNIFORMS.reference(seed, step, rows=1)[0][0, 0, 0]
    return int(np.searchsorted(np.cumsum(weights) / weights.sum(), uniform, "right"))


def plain(spec: TinyDecoder, choose: Choose) -> list[int]:
    """Tokens of the ungrafted host, one whole pass for each."""
    host, tokens = spec.build(), list(PROMPT)
    for turn in range(COUNT):
        positions = np.arange(len(tokens), dtype=np.int64)[None]
        feed = {"tokens": np.asarray([tokens], np.int64), "positions": positions}
        tokens.append(choose(run(host, feed)["logits"][0, -1], turn))
    return tokens[len(PROMPT) :]


@pytest.mark.parametrize("spec", HOSTS.values(), ids=HOSTS.keys())
def test_greedy_steps_give_plain_tokens_whatever_the_tree(spec: TinyDecoder) -> None:
    expected, model = plain(spec, greedy), build(DRAFT + LOWERED, spec)
    for name, template in TEMPLATES.items():
        fused = FusedRun(model, template)
        fused.prefill(PROMPT)
        assert fused.generate(COUNT) == expected, name


def test_sampled_steps_give_plain_draws_whatever_the_tree() -> None:
    spec = HOSTS["grouped"]
    expected, model = plain(spec, warm), build(SAMPLED + LOWERED, spec)
    settings = {"temperature": 0.9, "min_p": 0.01, "seed": 11}
    for name, template in TEMPLATES.items():
        fused = FusedRun(model, template, **settings)
        fused.prefill(PROMPT)
        assert fused.generate(COUNT) == expected, name
        assert fused.state["ordinal"][0] >= COUNT


def test_steps_are_saved_once_the_table_knows_the_text() -> None:
    """What drafting is for: the second request takes fewer steps, with the same tokens."""
    fused = FusedRun(build(DRAFT + LOWERED, HOSTS["grouped"]), TEMPLATES["tree"])
    counts: list[int] = []
    texts: list[list[int]] = []
    for _ in range(2):
        fused.prefill(PROMPT)
        sizes: list[int] = []
        text: list[int] = []
        while len(text) < COUNT:
            text += (added := fused.step())
            sizes.append(len(added))
        counts.append(len(sizes))
        texts.append(text[:COUNT])
    assert texts[0] == texts[1]
    assert counts[1] < counts[0] < COUNT


def test_before_and_after() -> None:
    before, after = (
        {p.name: p for p in read_ports(build(text, HOSTS["grouped"]))}
        for text in (f"{FRONT} | fuse-verify", DRAFT)
    )
    added = [(p.name, p.dtype, p.shape, p.mirror) for n, p in after.items() if n not in before]
    assert added == [
        ("table", "int32", (61, 4), None),
        ("template.parents", "int64", ("M",), None),
        ("template.ranks", "int64", ("M",), None),
        ("table.out", "int32", (61, 4), "table"),
        ("next.tokens", "int64", ("B", "M"), "tokens"),
        ("next.parents", "int64", ("B", "M"), "parents"),
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (f"{FRONT} | fuse-draft", "put fuse-verify before it"),
        (f"{DRAFT} | fuse-draft", "already drafts its next tree"),
        (f"{FRONT} | fuse-verify | fuse-draft", "put reduce-logits{topk=8} before it"),
        (DRAFT.replace("levels=4", "levels=0"), "width and levels are at least 1"),
    ],
)
def test_refusals(text: str, message: str) -> None:
    with pytest.raises(NotApplicable) as caught:
        build(text, HOSTS["grouped"])
    assert message in str(caught.value)


class OldTable(FuseDraft):
    """Made wrong on purpose: the tree is drafted from the table before this step."""

    def apply(self, model: ir.Model) -> None:
        super().apply(model)
        node = next(n for n in model.graph if n.op_type == "DraftTree")
        node.replace_input_with(0, next(v for v in model.graph.inputs if v.name == "table"))


class Forgets(FuseDraft):
    """Made wrong on purpose: accepted nodes do not win over rejected ones of the same token."""

    def apply(self, model: ir.Model) -> None:
        super().apply(model)
        node = next(n for n in model.graph if n.op_type == "CandidateUpdate")
        path = node.inputs[4]
        assert path is not None
        none = ir.node("Sub", [path, path])
        model.graph.insert_before(node, none)
        node.replace_input_with(4, none.outputs[0])


@pytest.mark.parametrize("wrong", [OldTable, Forgets])
def test_the_law_catches_a_wrong_table(wrong: type[FuseDraft]) -> None:
    def held(graft: FuseDraft) -> list[str]:
        model = build(FRONT, HOSTS["grouped"])
        feed = decoder_feed(61)
        for earlier in Pipeline.parse("kv-cache | tree-mask | select-rows", GRAFTS).grafts:
            feed = earlier.neutral(feed, model)
        verify = Pipeline.parse("fuse-verify", GRAFTS).grafts[0]
        return [law.law for law in Pipeline((verify, graft)).run(model, feed)[1].laws]

    assert "drafted" in held(FuseDraft(width=4))
    with pytest.raises(LawBroken, match="breaks the law 'drafted' at"):
        held(wrong(width=4))
