"""A bundle whose heads stand behind a layer of their own in the target's step (Hydra++)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import torch

from graftline.build.check import check
from graftline.build.optimize import optimize
from graftline.bundle.reader import Bundle
from graftline.errors import GraftlineError
from graftline.evaluate import run
from graftline.passes import GRAFTS, Pipeline
from graftline.passes.anchors.anchors import with_role
from graftline.passes.graph.emit import new_output
from graftline.passes.graph.weights import tensor_of
from graftline.runtimes.session import MADE
from tests.free_engine import answers_are_plains, free
from tests.hydra_files import write_prefixed
from tests.models.heads.reference_hydra import Stacks
from tests.models.heads.reference_layers import Sizes
from tests.rounding import assert_same_sums
from tests.tiny_checkpoints import WIDE, TinyCheckpoint

SIZES = Sizes(
    hidden=32, heads=4, kv_heads=2, head_size=16, mlp=48, vocabulary=260, layers=2, theta=100.0
)
HEADS = 3
PROMPTS = [[5, 9, 2], [1] * 9, list(range(40, 57))]
TERMS = 3 * (32 + 64 + 20) + 6 * 32


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("prefix")


@pytest.fixture(scope="module")
def checkpoint(known_checkpoints: dict[Path, Any], folder: Path) -> Path:
    path = folder / "checkpoint"
    path.mkdir()
    known_checkpoints[path] = TinyCheckpoint(path, WIDE)
    return path


@pytest.fixture(scope="module")
def module(folder: Path) -> Stacks:
    return write_prefixed(folder / "head", SIZES, HEADS, layers=2)


@pytest.fixture(scope="module")
def bundle(checkpoint: Path, module: Stacks, folder: Path) -> Bundle:
    return optimize(checkpoint, folder / "prefix.graft", head=str(folder / "head"))


class Reference:
    """The host by the oracle, and the heads by PyTorch, over whole texts."""

    def __init__(self, module: Stacks) -> None:
        self.module, self.host = module, WIDE.build()
        table = tensor_of(self.host.graph.initializers["embed.weight"])
        self.table = torch.from_numpy(table.numpy())
        Pipeline.parse("anchors", GRAFTS).run(self.host)
        (norm,) = with_role(self.host.graph, "final_norm")
        new_output(self.host.graph, norm.outputs[0], "normed", ir.DataType.FLOAT, ["B", "N", 32])

    def states(self, tokens: list[int]) -> torch.Tensor:
        """[N, H]: what the layer in front of the heads makes of a text."""
        at = np.arange(len(tokens))[None]
        got = run(self.host, {"tokens": np.asarray([tokens]), "positions": at})["normed"]
        with torch.no_grad():
            return self.module.prefix_embeding_layer(torch.from_numpy(got))[0]

    def drafts(self, state: torch.Tensor, token: int) -> list[int]:
        """The likeliest token of every head behind a state and the token chosen there."""
        known = [token]
        for number in range(HEADS):
            drafted = self.table[known].flatten()
            x = torch.cat([state, drafted])[None, None]
            with torch.no_grad():
                stack, score = self.module.hydra_mlp[number], self.module.hydra_lm_head[number]
                known.append(int(score(stack(x)).argmax()))
        return known[1:]


def test_the_layer_is_the_targets_and_the_heads_are_stages(bundle: Bundle) -> None:
    manifest = bundle.manifest
    assert manifest.recipe == "hydra"
    assert "head-prefix" in manifest.stages["ort-cpu"].pipeline
    owners = [name for name, stage in manifest.stages.items() if stage.role == "engine"]
    assert owners == ["ort-cpu", "head.0", "head.1", "head.2"]
    for form in ("ort-cpu", "chains", "rows-4"):
        roles = {p.role for p in manifest.stages[form].ports}
        assert {"adapter.key", "adapter.value", "features"} <= roles
    held = {(row.graft, row.law) for row in manifest.laws if row.status == "held"}
    assert {("head.2", "whole"), ("rows-2", "form")} <= held
    assert "prefixed" in {law for _, law in held}
    report = check(bundle.path)
    assert report.holds, [f for f in report.findings if not f.holds]


def test_drafts_are_the_references_whatever_was_accepted(bundle: Bundle, module: Stacks) -> None:
    """States and drafts behind a prompt, and after steps of which 0, 2 and 0 drafts stood."""
    engine: Any = free(bundle.path)
    reference, session, heads = Reference(module), engine.session, engine.resources.head()
    text = list(PROMPTS[2])
    session.reset(1)
    scores = session.read(0, np.asarray(text, np.int64), None)
    states = scores.tap(MADE)[0, -1:].copy()
    for accepted in (0, 2, 0):
        whole = reference.states(text).numpy()
        assert_same_sums(states, whole[-len(states) :], TERMS)
        last = 7 + accepted
        wanted, drafted = reference.drafts(torch.from_numpy(whole[-1]), last), [last]
        for number in range(HEADS):
            ids, _ = heads.answer(states[-1:], number, np.asarray([drafted]))
            drafted.append(int(ids[0, 0, 0]))
        assert drafted[1:] == wanted
        scores = session.score(np.asarray([drafted]))
        rows = accepted + 1
        states = scores.tap(MADE)[0, :rows].copy()
        session.commit([range(rows)])
        text += drafted[:rows]


@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_tokens_are_plains_alone_and_in_a_batch(bundle: Bundle, temperature: float) -> None:
    answers_are_plains(bundle.path, PROMPTS, temperature)


def test_the_layer_costs_no_call(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    """It reads prompts and catches up within the target's step: heads are called once a depth."""
    engine = free(bundle.path)
    heads, calls = engine.resources.head(), list[int]()
    real = heads.answer

    def answer(hidden: Any, head: int = 0, tokens: Any = None) -> Any:
        calls.append(head)
        return real(hidden, head, tokens)

    monkeypatch.setattr(heads, "answer", answer)
    stats = engine.generate(PROMPTS[2], max_new_tokens=24, ignore_eos=True).stats
    assert len(calls) <= HEADS * stats.steps
    assert set(calls) == set(range(HEADS))


def test_other_passes_are_told_what_the_heads_need(
    checkpoint: Path, module: Stacks, folder: Path
) -> None:
    out, head = folder / "wrong", str(folder / "head")
    passes = "kv-cache | tree-mask | select-rows | tap{layers=norm} | reduce-logits{topk=8}"
    with pytest.raises(GraftlineError, match="put head-prefix into --passes"):
        optimize(checkpoint, out, head=head, passes=passes)
    assert not out.exists()
