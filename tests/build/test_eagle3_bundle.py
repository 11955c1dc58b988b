"""Bundles with EAGLE-3 heads: features of several layers, a vocabulary of the head's own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from graftline.build.check import check
from graftline.build.optimize import optimize
from graftline.bundle.reader import Bundle
from graftline.errors import CheckpointError
from graftline.models.tiny import tiny
from graftline.runtimes.drafter import Bid
from graftline.runtimes.drafters import make_drafter
from graftline.runtimes.drafting import draft_alone
from graftline.runtimes.load import load
from graftline.runtimes.session import MADE
from graftline.runtimes.verdict import Verdict
from graftline.tree import Tree
from tests.eagle_drafts import TokenPath, expanded
from tests.free_engine import free
from tests.models.heads.reference_eagle3 import Eagle3, Form
from tests.models.heads.reference_layers import Sizes, drawn, state, written
from tests.runtimes.tree_cases import spelled
from tests.tiny_checkpoints import write_tokenizer

SIZES = Sizes(hidden=48, heads=4, kv_heads=2, head_size=12, mlp=80, vocabulary=260, layers=3)
KEPT = list(range(3, 260, 2))
"""The tokens of the head's own vocabulary, where it has one."""
FORMS = {
    "3.1": Form(SIZES, taps=2, host_hidden=48, drafted=len(KEPT), fc_norm=True, norm_output=True),
    "3, two layers": Form(SIZES, layers=2, taps=2, host_hidden=48, drafted=260,
                          norm_before_fc=True, residual_normed=True),
}  # fmt: skip
LAYERS = [0, 1]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tiny("llama", tmp_path_factory.mktemp("eagle3") / "host", vocab_size=260)
    write_tokenizer(folder)
    return folder


def files(form: Form, folder: Path, **changes: Any) -> Path:
    folder.mkdir(exist_ok=True)
    tensors = state(drawn(Eagle3(form)))
    if form.drafted != form.sizes.vocabulary:
        tensors["d2t"] = torch.tensor(KEPT) - torch.arange(len(KEPT))
    switches = {
        "draft_vocab_size": form.drafted, "num_hidden_layers": form.layers,
        "norm_before_fc": form.norm_before_fc, "fc_norm": form.fc_norm,
        "norm_before_residual": form.residual_normed, "norm_output": form.norm_output,
        "eagle_config": {"eagle_aux_hidden_state_layer_ids": LAYERS},
    }  # fmt: skip
    return written(folder, SIZES.config(**{**switches, **changes}), tensors)


@pytest.fixture(scope="module", params=FORMS)
def made(request: pytest.FixtureRequest, checkpoint: Path) -> tuple[Bundle, Form]:
    form, folder = FORMS[request.param], checkpoint.parent
    head = files(form, folder / request.param.replace(" ", "-"))
    out = folder / f"{request.param.replace(' ', '-')}.graft"
    return optimize(checkpoint, out, head=str(head)), form


def test_the_head_and_its_features_are_proven(made: tuple[Bundle, Form]) -> None:
    manifest = made[0].manifest
    assert (manifest.recipe, manifest.stages["head.0"].facts.kind) == ("eagle-3", "draft-block")
    laws = {(w.owner, w.graft.partition("{")[0], w.law): w.status for w in manifest.laws}
    wanted = [("target", "head-features", "features-formula"),
              ("target", "head-features", "layers"), ("head.0", "features", "opened"),
              ("head.0", "draft-vocabulary", "renamed"), ("head.0", "head.0", "whole"),
              ("head.0", "head.0", "taps")]  # fmt: skip
    assert {laws[row] for row in wanted} == {"held"}
    report = check(made[0].path)
    assert report.holds, [f for f in report.findings if not f.holds]


def hidden_states(checkpoint: Path, ids: list[int]) -> torch.Tensor:
    """[1, N, taps x H] of transformers' own model."""
    from transformers import AutoModelForCausalLM

    model: Any = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32)
    with torch.no_grad():
        out = model(torch.tensor([ids]), output_hidden_states=True)
    return torch.cat([out.hidden_states[layer + 1] for layer in LAYERS], dim=-1)


def table_of(checkpoint: Path) -> torch.Tensor:
    from safetensors.torch import load_file

    return load_file(checkpoint / "model.safetensors")["model.embed_tokens.weight"].double()


def test_drafts_behind_the_targets_own_text_are_the_references(
    made: tuple[Bundle, Form], checkpoint: Path
) -> None:
    """What transformers has at the layers, through the reference's fc and steps, drafts the very
    tokens that the engine drafts behind what its own target has read."""
    bundle, form = made
    engine: Any = load(bundle.path)
    drafter, text = begun(engine, {})
    drafted = draft_alone(drafter.draft(Bid.free(6))).token_list[1:]
    assert drafted == rolled_out(form, checkpoint, text, 5)
    if form.drafted < 260:
        assert set(drafted) <= set(KEPT)


def begun(engine: Any, options: dict[str, int]) -> tuple[Any, list[int]]:
    """A drafter that has seen a prompt and the token that the target chose behind it; and these."""
    drafter: Any = make_drafter("eagle", options, engine.resources)
    prompt = [5, 77, 13, 200, 41, 8, 99]
    session = engine.session
    session.reset(1)
    seen = 0

    def show(states: Any) -> None:
        nonlocal seen
        drafter.see(seen, states)
        seen += len(states[MADE])

    scores = session.read(0, np.asarray(prompt, np.int64), show)
    drafter.start(prompt)
    chosen = int(scores.argmax[0, 0])
    drafter.observe(Tree.chain(prompt[-1:]), Verdict((0,), chosen), scores, 0)
    return drafter, [*prompt, chosen]


def test_trees_behind_the_targets_own_text_are_the_references(
    made: tuple[Bundle, Form], checkpoint: Path
) -> None:
    bundle, form = made
    engine: Any = load(bundle.path)
    options = {"width": 3, "depth": 3, "rows": 12}
    drafter, text = begun(engine, options)
    module, table = drawn(Eagle3(form)).double(), table_of(checkpoint)
    known = module.entry(hidden_states(checkpoint, text[:-1]).double())
    states: dict[TokenPath, torch.Tensor] = {}

    def probs(path: TokenPath) -> torch.Tensor:
        above = [states[path[:length]] for length in range(len(path))]
        x = torch.cat([known, *above], dim=1)
        made, logits = module.step(table[[*text[1:], *path]][None], x)
        states[path] = made[:, -1:]
        of_ids = torch.zeros(260, dtype=torch.float64)
        of_ids[KEPT if form.drafted < 260 else slice(None)] = logits[0, -1].softmax(-1)
        return of_ids

    tree = draft_alone(drafter.draft(Bid.free(12)))
    assert not tree.is_chain
    wanted = expanded(probs, drafter.ranks.of_head, **options)
    assert [path[1:] for path in spelled(tree)] == wanted


def rolled_out(form: Form, checkpoint: Path, tokens: list[int], count: int) -> list[int]:
    module = drawn(Eagle3(form)).double()
    x = module.entry(hidden_states(checkpoint, tokens[:-1]).double())
    table, ids = table_of(checkpoint), tokens[1:]
    for _ in range(count):
        states, logits = module.step(table[ids][None], x)
        x = torch.cat([x, states[:, -1:]], dim=1)
        best = int(logits[0, -1].argmax())
        ids = [*ids, KEPT[best] if form.drafted < 260 else best]
    return ids[len(tokens) - 1 :]


def test_tokens_are_plains(made: tuple[Bundle, Form]) -> None:
    engine = free(made[0].path)
    prompts = [[5, 9, 2], [1] * 9, list(range(40, 57))]
    options: dict[str, Any] = {"max_new_tokens": 24, "ignore_eos": True}
    plain = [r.tokens for r in engine.generate(prompts, recipe="plain", **options)]
    for name in ("eagle-3", "eagle-3-suffix"):
        drafted = engine.generate(prompts, recipe=name, **options)
        assert [r.tokens for r in drafted] == plain
        assert sum(r.stats.drafted for r in drafted) > 200


def test_scores_of_a_head_beside_sampling_rules(made: tuple[Bundle, Form]) -> None:
    """Sampled text is the same with and without: drafts are point masses."""
    engine = free(made[0].path)
    options: dict[str, Any] = {"max_new_tokens": 24, "ignore_eos": True, "temperature": 0.9}
    plain = engine.generate([5, 9, 2], recipe="plain", seed=4, **options)
    assert engine.generate([5, 9, 2], seed=4, **options).tokens == plain.tokens


def test_what_is_read_and_not_built_is_named(checkpoint: Path, tmp_path: Path) -> None:
    form = Form(SIZES, taps=2, host_hidden=48, drafted=260, parallel=2)
    steps = {"parallel_draft_step": 3, "parallel_draft_heads_num_layers": 1}
    steps["eagle_aux_hidden_state_layer_ids"] = LAYERS
    head = files(form, tmp_path / "head", eagle_config=steps)
    with pytest.raises(CheckpointError, match="further parallel heads, which this version reads"):
        optimize(checkpoint, tmp_path / "out", head=str(head))
    assert not (tmp_path / "out").exists()


def test_a_state_that_is_not_copied_would_be_seen() -> None:
    """The session's states are views: a drafter that kept them would read the next call's."""
    from graftline.runtimes.feature_reader import FeatureReader

    engine: Any = type("Engine", (), {
        "rows_cost": staticmethod(lambda n: 1.0), "step": 1.0, "capacity": 64, "shares": False,
        "head": type("Head", (), {"width": 4}),
        "seats": type("Seats", (), {"take": staticmethod(lambda owner: None)}),
    })  # fmt: skip
    reader: Any = FeatureReader(engine)
    shown = np.ones((3, 4), np.float32)
    reader.see(0, shown)
    shown[:] = 9.0
    reader.start([1, 2, 3])
    assert (reader._features.of(0) == 1.0).all()
