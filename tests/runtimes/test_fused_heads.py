"""Fused steps that draft by heads: the host's tokens, one call of the engine for each step."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from graftline.build.head_graph import head_graphs
from graftline.bundle.store import save_graph
from graftline.bundle.weight_file import WeightFile
from graftline.errors import BackendError, LawBroken
from graftline.facts import decoder_facts
from graftline.models.decoder import TinyDecoder
from graftline.models.heads.files import read_files
from graftline.models.heads.medusa import open_medusa
from graftline.passes import GRAFTS, Pipeline
from graftline.passes.grafts.head_parts import HEADS
from graftline.passes.laws.common import infer_shapes
from graftline.ports import read_ports
from graftline.recipe import recipe
from graftline.runtimes.engine import Engine
from graftline.runtimes.fused import chain
from graftline.runtimes.fused_drafts import HeadDrafts
from graftline.runtimes.fused_law import fused_is_host
from graftline.runtimes.ort.fused import OrtFusedStep
from graftline.runtimes.ort.heads import OrtHeads
from graftline.runtimes.ort.session import OrtSession
from graftline.runtimes.resources import Resources
from graftline.runtimes.session import FINAL
from graftline.runtimes.trees.template import Template
from tests.medusa_files import fitted, write_safe

FRONT = "anchors | kv-cache | tree-mask | select-rows | tap{layers=norm} | reduce-logits{topk=8}"
FUSING = "fuse-verify{sample=true} | fuse-heads{topk=6}"
SPEC = TinyDecoder(positions=90)
CAPACITY = 90
MEDUSA = replace(recipe("medusa"), options={"rows": 12})
SETTINGS: tuple[dict[str, Any], ...] = (
    {},
    {"temperature": 0.4, "seed": 1},
    {"temperature": 1.1, "min_p": 0.05, "seed": 2},
)
PROMPTS = [[5, 9, 33, 2, 5, 9, 11, 60], [1], [7, 7, 7, 7]]


class Opened:
    """A tiny host, its fused step, and the stage of its heads, which know its text."""

    def __init__(self, folder: Path) -> None:
        self.session = self._session(folder)
        head = read_files(write_safe(folder / "head", self._fitted()))
        target = SPEC.build()
        infer_shapes(target)
        Pipeline.parse("anchors", GRAFTS).run(target)
        (published,) = head_graphs(open_medusa(head), target)
        stage = published.clone()
        Pipeline.parse("draft-heads{topk=6} | lower-ort", GRAFTS).run(stage)
        model = SPEC.build()
        infer_shapes(model)
        model.meta[HEADS] = published
        Pipeline.parse(f"{FRONT} | {FUSING} | lower-ort", GRAFTS).run(model)
        self.stage = self._saved(stage, folder, "stage"), read_ports(stage)
        graph = self._saved(model, folder, "fused")
        self.fused = OrtFusedStep(graph, read_ports(model), self.session)
        self.heads = OrtHeads([self.stage], 1)

    def _saved(self, model: Any, folder: Path, name: str) -> Path:
        path = folder / f"{name}.onnx"
        save_graph(model, path, WeightFile(folder, f"{name}.weights", lambda size: None), {})
        return path

    def _session(self, folder: Path) -> OrtSession:
        model = SPEC.build()
        infer_shapes(model)
        Pipeline.parse(f"{FRONT} | lower-ort", GRAFTS).run(model)
        graph = self._saved(model, folder, "host")
        session = OrtSession(graph, decoder_facts(model), read_ports(model), capacity=CAPACITY)
        session.row_invariant, session.exact_rows = True, 1
        return session

    def _fitted(self) -> Any:
        """Heads fitted to what the host writes behind the first prompt."""
        text = list(PROMPTS[0])
        for _ in range(24):  # fewer rows than features: the fit is exact
            self.session.reset(1)
            text.append(int(self.session.prefill([np.asarray(text)]).argmax[0, -1]))
        self.session.reset(1)
        states: list[Any] = []
        self.session.read(0, np.asarray(text), lambda s: states.append(s[FINAL].copy()))
        return fitted(np.concatenate(states), text, self.session.facts.vocabulary)

    def drafts(self, **options: Any) -> HeadDrafts:
        return HeadDrafts(*self.stage, {**MEDUSA.options, **options}, self.fused)

    def engine(self) -> Engine:
        resources = Resources(head=lambda: self.heads)
        return Engine(
            self.session, None, {}, MEDUSA, None, resources=resources, fused=lambda: self.fused
        )


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> Opened:
    return Opened(tmp_path_factory.mktemp("heads"))


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
    assert options or accepted > 10, "heads that know the text are accepted"


def test_a_ragged_batch_is_the_hosts(opened: Opened) -> None:
    engine = opened.engine()
    for asked in ({"max_new_tokens": 25}, {"max_new_tokens": 25, "batch": 2, "temperature": 0.8}):
        host: Any = engine.generate(PROMPTS, recipe="plain", seed=4, **asked)
        fused: Any = engine.generate(PROMPTS, step="fused", seed=4, **asked)
        assert [r.tokens for r in fused] == [r.tokens for r in host]


def test_a_step_is_one_call_of_one_engine(
    opened: Opened, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []

    def counted(name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        return lambda *given: (calls.append(name), real(*given))[1]

    fused, session, heads = opened.fused, opened.session, opened.heads
    monkeypatch.setattr(fused, "_run_bound", counted("fused", fused._run_bound))
    monkeypatch.setattr(session, "_run", counted("host", session._run))
    monkeypatch.setattr(heads, "answer", counted("heads", heads.answer))
    result: Any = opened.engine().generate(PROMPTS[0], max_new_tokens=40, step="fused")
    assert calls == ["host", *["fused"] * result.stats.steps], "one for the prompt, one per step"
    assert result.stats.steps < 36


def test_no_position_past_the_capacity_is_used(opened: Opened) -> None:
    engine, prompt = opened.engine(), PROMPTS[0] * 6
    room = CAPACITY - len(prompt)
    plain: Any = engine.generate(prompt, recipe="plain", max_new_tokens=room)
    fused: Any = engine.generate(prompt, step="fused", max_new_tokens=room)
    assert fused.tokens == plain.tokens


@pytest.mark.parametrize("options", [{}, {"rows": 40, "tree": "medusa-mc-sim-7b-63"}])
def test_the_law_of_the_fused_step(opened: Opened, options: dict[str, Any]) -> None:
    """Of the best tree for such heads, and of a published one less what they do not give."""
    drafts = opened.drafts(**options)
    told = fused_is_host(opened.session, opened.fused, drafts)
    assert "are the host's, caches and the trees that heads draft too" in told
    assert len(drafts.plan) == (40 if options else 12), "the drafter's rows, as on the host"


def test_the_law_sees_a_draft_of_another_row(
    opened: Opened, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What heads say behind the step before is what a wrong row gives."""
    drafts = opened.drafts()
    observe = drafts.observe

    def late(tree: Any, verdict: Any, scores: Any) -> None:
        last = drafts._state
        observe(tree, verdict, scores)
        if len(last):
            drafts._state = last

    monkeypatch.setattr(drafts, "observe", late)
    with pytest.raises(LawBroken, match=r"law 'fused' at tree: has token \d+ at node \d+, .* of h"):
        fused_is_host(opened.session, opened.fused, drafts)


@pytest.mark.parametrize(
    ("column", "message"),
    [
        ("template.parents", "is not the template's"),
        ("template.depths", "has token|one token twice"),
        ("template.ranks", "has token|one token twice"),
    ],
)
def test_the_law_sees_a_template_that_is_off(
    opened: Opened, monkeypatch: pytest.MonkeyPatch, column: str, message: str
) -> None:
    real = Template.columns.fget  # type: ignore[attr-defined]
    assert real is not None

    def off(self: Template) -> dict[str, Any]:
        columns = {name: array.copy() for name, array in real(self).items()}
        least = -1 if column == "template.parents" else 0
        columns[column][1:] = np.maximum(columns[column][1:] - 1, least)
        return columns

    monkeypatch.setattr(Template, "columns", property(off))
    with pytest.raises(LawBroken, match=rf"breaks the law 'fused' at tree: .*({message})"):
        fused_is_host(opened.session, opened.fused, opened.drafts())


def test_the_law_sees_a_commit_at_the_wrong_slot(
    opened: Opened, monkeypatch: pytest.MonkeyPatch
) -> None:
    fused, session = opened.fused, opened.session
    right = fused.step

    def wrong(row: int, room: int) -> list[int]:
        chosen = right(row, room)
        end = session.lengths[row]
        for cache in session.caches(row).values():
            cache[:, :, end] = cache[:, :, end - 1].copy()
            cache[:, :, end - 1] = 0
        return chosen

    monkeypatch.setattr(fused, "step", wrong)
    with pytest.raises(LawBroken, match=r"breaks the law 'fused' at cache\.0"):
        fused_is_host(session, fused, opened.drafts())


def test_trees_that_heads_cannot_draft_are_refused(opened: Opened) -> None:
    with pytest.raises(BackendError, match="a tree of depth 4; this step has 3 draft heads"):
        opened.fused.reset(chain(5))
    wide = Template.of({(rank,): 0.1 for rank in range(7)})
    with pytest.raises(BackendError, match="candidate 6 of a head; this step keeps 6, counted"):
        opened.fused.reset(wide)
    assert opened.fused.heads is not None
    with pytest.raises(BackendError, match="draft within its steps; use --step fused"):
        opened.fused.heads.answer(np.zeros((1, 32), np.float32))
