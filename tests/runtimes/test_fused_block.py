"""Fused steps that draft by a block: the host's tokens, one call of the engine for each step."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from graftline.bundle.store import save_graph
from graftline.bundle.weight_file import WeightFile
from graftline.errors import BackendError, LawBroken
from graftline.facts import DraftBlockFacts, decoder_facts, read_facts
from graftline.passes import GRAFTS, Pipeline
from graftline.passes.grafts.block_copy import BLOCK_GRAPH
from graftline.passes.laws.common import infer_shapes
from graftline.ports import read_ports
from graftline.recipe import recipe
from graftline.runtimes.engine import Engine
from graftline.runtimes.feature_engine import FeatureEngine
from graftline.runtimes.fused import chain
from graftline.runtimes.fused_drafts import BlockDrafts
from graftline.runtimes.fused_law import fused_is_host
from graftline.runtimes.head_text import HeadText
from graftline.runtimes.ort.features import FeatureSession
from graftline.runtimes.ort.fused import OrtFusedStep
from graftline.runtimes.ort.session import OrtSession
from graftline.runtimes.resources import Resources
from graftline.runtimes.session import FINAL
from graftline.runtimes.trees.template import Template
from tests.tiny_block import SPEC, block_graph

FRONT = "anchors | kv-cache | tree-mask | select-rows | tap{layers=norm} | reduce-logits{topk=8}"
FUSING = "fuse-verify{sample=true} | fuse-block{depth=4}"
CAPACITY = 90
OPTIONS = {"rows": 8, "depth": 4}
EAGLE = replace(recipe("eagle"), options=OPTIONS)
SETTINGS: tuple[dict[str, Any], ...] = (
    {},
    {"temperature": 0.4, "seed": 1},
    {"temperature": 1.1, "min_p": 0.05, "seed": 2},
)
PROMPTS = [[5, 9, 33, 2, 5, 9, 11, 60], [1], [7, 7, 7, 7]]


class Opened:
    """A tiny host, its fused step, and the stage of its block, which nearly knows its text."""

    def __init__(self, folder: Path, drafted: int = 0) -> None:
        self.session: OrtSession = self._opened(f"{FRONT} | lower-ort", folder / "host")
        block = block_graph(drafted=drafted)
        stage = block.clone()
        Pipeline.parse("lower-ort", GRAFTS).run(stage)
        facts = read_facts(stage)
        assert isinstance(facts, DraftBlockFacts)
        graph = _saved(stage, folder / "head")
        self.head = FeatureSession(graph, facts, read_ports(stage), capacity=CAPACITY)
        model = SPEC.build()
        infer_shapes(model)
        model.meta[BLOCK_GRAPH] = block
        Pipeline.parse(f"{FRONT} | {FUSING} | lower-ort", GRAFTS).run(model)
        given = _saved(model, folder / "fused"), read_ports(model), self.session
        self.fused = OrtFusedStep(*given, self.head.sibling())

    def _opened(self, text: str, folder: Path) -> OrtSession:
        model = SPEC.build()
        infer_shapes(model)
        Pipeline.parse(text, GRAFTS).run(model)
        given = _saved(model, folder), decoder_facts(model), read_ports(model)
        session = OrtSession(*given, capacity=CAPACITY)
        session.row_invariant, session.exact_rows = True, 1
        return session

    def drafts(self) -> BlockDrafts:
        return BlockDrafts(self.head.sibling(), OPTIONS)

    def engine(self) -> Engine:
        engine = FeatureEngine(self.head, FINAL, 0.1)
        resources = Resources(head=lambda: engine)
        return Engine(
            self.session, None, {}, EAGLE, None, resources=resources, fused=lambda: self.fused
        )


def _saved(model: Any, folder: Path) -> Path:
    folder.mkdir()
    save_graph(model, folder / "g.onnx", WeightFile(folder, "g.weights", lambda size: None), {})
    return folder / "g.onnx"


@pytest.fixture(scope="module", params=[0, 30], ids=["all", "some"])
def opened(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Opened:
    """Of a block that scores all tokens, and some."""
    return Opened(tmp_path_factory.mktemp("block"), request.param)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Opened:
    return Opened(tmp_path_factory.mktemp("whole"))


@pytest.mark.parametrize("options", SETTINGS)
def test_fused_host_and_plain_give_the_same_tokens(opened: Opened, options: dict[str, Any]) -> None:
    engine, accepted = opened.engine(), 0
    for prompt in PROMPTS:
        asked = {"max_new_tokens": 40, **options}
        plain: Any = engine.generate(prompt, recipe="plain", **asked)
        host: Any = engine.generate(prompt, **asked)
        fused: Any = engine.generate(prompt, step="fused", **asked)
        assert fused.tokens == host.tokens == plain.tokens
        assert fused.stats.lossless
        accepted += 39 - fused.stats.steps
    assert options or accepted > 10, "a block that knows the text is accepted"


def test_ragged_batches_are_the_hosts(whole: Opened) -> None:
    engine = whole.engine()
    for asked in ({"max_new_tokens": 25}, {"max_new_tokens": 25, "batch": 2, "temperature": 0.8}):
        host: Any = engine.generate(PROMPTS, recipe="plain", seed=4, **asked)
        fused: Any = engine.generate(PROMPTS, step="fused", seed=4, **asked)
        assert [r.tokens for r in fused] == [r.tokens for r in host]


def test_a_step_is_one_call_of_one_engine(whole: Opened, monkeypatch: pytest.MonkeyPatch) -> None:
    """The head's stage is asked once, for the prompt."""
    calls: list[str] = []

    def counted(name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        return lambda *given: (calls.append(name), real(*given))[1]

    fused, session = whole.fused, whole.session
    assert fused.block is not None
    head: Any = fused.block._session
    monkeypatch.setattr(fused, "_run_bound", counted("fused", fused._run_bound))
    monkeypatch.setattr(session, "_run", counted("host", session._run))
    monkeypatch.setattr(head, "_run", counted("head", head._run))
    monkeypatch.setattr(whole.head, "_run", counted("host's head", whole.head._run))
    result: Any = whole.engine().generate(PROMPTS[0], max_new_tokens=40, step="fused")
    assert calls == ["host", "head", *["fused"] * result.stats.steps]
    assert result.stats.steps < 36
    assert result.stats.controller.startswith("fused: eagle, a tree of 5 rows")


def test_no_position_past_the_capacity_is_used(whole: Opened) -> None:
    engine, prompt = whole.engine(), PROMPTS[0] * 6
    room = CAPACITY - len(prompt)
    plain: Any = engine.generate(prompt, recipe="plain", max_new_tokens=room)
    fused: Any = engine.generate(prompt, step="fused", max_new_tokens=room)
    assert fused.tokens == plain.tokens


def test_the_law_of_the_fused_step(opened: Opened) -> None:
    told = fused_is_host(opened.session, opened.fused, opened.drafts())
    assert "are the host's, caches, the head's too, and the chains that it drafts" in told


@pytest.mark.parametrize("fault", ["tokens", "features"])
def test_the_law_sees_a_prompt_that_is_read_wrong(
    whole: Opened, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    assert whole.fused.block is not None
    right = whole.fused.block.read

    def wrong(row: int, text: HeadText) -> None:
        tokens, features = list(text.tokens), text.features
        if fault == "tokens":
            tokens = [tokens[0], *tokens[:-1]]
        right(row, HeadText(tokens, np.roll(features, fault == "features", axis=0)))

    monkeypatch.setattr(whole.fused.block, "read", wrong)
    with pytest.raises(LawBroken, match=r"breaks the law 'fused' at (cache\.0|tree)"):
        fused_is_host(whole.session, whole.fused, whole.drafts())


def test_the_law_sees_what_a_step_leaves_in_the_heads_caches(
    whole: Opened, monkeypatch: pytest.MonkeyPatch
) -> None:
    fused = whole.fused
    right = fused.step

    def wrong(row: int, room: int) -> list[int]:
        chosen = right(row, room)
        assert fused.block is not None
        for cache in fused.block.caches(row).values():
            cache[:, :, whole.session.lengths[row] - 1] = 0
        return chosen

    monkeypatch.setattr(fused, "step", wrong)
    with pytest.raises(LawBroken, match=r"at cache\.0\.key: differs from what the head's stage"):
        fused_is_host(whole.session, fused, whole.drafts())


def test_the_law_sees_another_chain(whole: Opened, monkeypatch: pytest.MonkeyPatch) -> None:
    right = whole.fused.tree

    def wrong(row: int) -> tuple[Any, Any]:
        tokens, parents = right(row)
        if parents[-1] >= 0:
            tokens[-1] = (tokens[-1] + 1) % SPEC.vocabulary
        return tokens, parents

    monkeypatch.setattr(whole.fused, "tree", wrong)
    with pytest.raises(LawBroken, match=r"has token \d+ at node 4, .* from the head's best"):
        fused_is_host(whole.session, whole.fused, whole.drafts())


def test_trees_that_a_block_cannot_draft_are_refused(whole: Opened) -> None:
    with pytest.raises(BackendError, match="a chain of 5 drafts; this fused step drafts 4"):
        whole.fused.reset(chain(6))
    with pytest.raises(BackendError, match="drafts chains, and the tree has branches"):
        whole.fused.reset(Template.of({(0,): 0.5, (1,): 0.2}))
