"""Bundles with P-EAGLE heads: several tokens of a draft in one call, over masks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from graftline.build.check import check
from graftline.build.optimize import optimize
from graftline.bundle.reader import Bundle
from graftline.errors import CheckpointError, GraftlineError
from graftline.models.heads import open_head
from graftline.models.heads.mask_feature import mask_feature
from graftline.models.tiny import tiny
from graftline.runtimes.drafter import Bid
from graftline.runtimes.drafting import draft_together
from graftline.runtimes.load import load
from graftline.tree import Tree
from tests.drafted_sequence import DraftedSequence
from tests.free_engine import free
from tests.models.heads.reference_eagle3 import Eagle3, Form
from tests.models.heads.reference_layers import Sizes, drawn, state, written
from tests.tiny_checkpoints import write_tokenizer

SIZES = Sizes(hidden=48, heads=4, kv_heads=2, head_size=12, mlp=80, vocabulary=260, layers=3)
KEPT = list(range(3, 260, 2))
FORMS = {
    "norms": Form(SIZES, taps=2, host_hidden=48, drafted=len(KEPT), fc_norm=True, mask=True),
    "two": Form(SIZES, layers=2, taps=2, host_hidden=48, drafted=260, norm_before_fc=True,
                mask=True),
}  # fmt: skip
MASK, DRAFTS = 259, 5


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tiny("llama", tmp_path_factory.mktemp("p-eagle") / "host", vocab_size=260)
    write_tokenizer(folder)
    return folder


def files(form: Form, folder: Path, **changes: Any) -> Path:
    folder.mkdir(exist_ok=True)
    tensors = state(drawn(Eagle3(form)))
    if form.drafted != form.sizes.vocabulary:
        tensors["d2t"] = torch.tensor(KEPT) - torch.arange(len(KEPT))
    switches = {
        "draft_vocab_size": form.drafted, "num_hidden_layers": form.layers,
        "norm_before_fc": form.norm_before_fc, "fc_norm": form.fc_norm, "mask_token_id": MASK,
        "eagle_config": {"eagle_aux_hidden_state_layer_ids": [0, 1]},
    }  # fmt: skip
    return written(folder, SIZES.config(**{**switches, **changes}), tensors)


@pytest.fixture(scope="module", params=FORMS)
def made(request: pytest.FixtureRequest, checkpoint: Path) -> tuple[Bundle, Form]:
    form, folder = FORMS[request.param], checkpoint.parent
    head = files(form, folder / request.param)
    return optimize(checkpoint, folder / f"{request.param}.graft", head=str(head)), form


def test_the_head_is_proven_with_its_masks(made: tuple[Bundle, Form]) -> None:
    manifest = made[0].manifest
    stage: Any = manifest.stages["head.0"]
    assert (manifest.recipe, stage.facts.kind, stage.facts.mask_token) == (
        "p-eagle", "draft-block", MASK,
    )  # fmt: skip
    laws = {(w.graft.partition("{")[0], w.law): w.status for w in manifest.laws
            if w.owner == "head.0"}  # fmt: skip
    wanted = [("kv-cache", "chunked"), ("features", "opened"), ("head.0", "whole")]
    assert {laws[row] for row in wanted} == {"held"}
    report = check(made[0].path)
    assert report.holds, [f for f in report.findings if not f.holds]


def test_the_feature_of_a_mask_is_fc_of_its_taps(tmp_path: Path) -> None:
    for name, form in FORMS.items():
        head = open_head(files(form, tmp_path / name))
        module = drawn(Eagle3(form)).double()
        expected = module.entry(module.mask_hidden).detach().numpy()[0, 0]
        got = mask_feature(head).numpy()
        size = 2 * SIZES.hidden * np.abs(expected).max()
        assert np.abs(got - expected).max() <= size * 2.0**-24


def table_of(checkpoint: Path) -> torch.Tensor:
    from safetensors.torch import load_file

    return load_file(checkpoint / "model.safetensors")["model.embed_tokens.weight"].double()


def filled(form: Form, table: torch.Tensor, tokens: list[int], features: Any) -> list[int]:
    """What the reference drafts behind `tokens` [N + 1], whose features [N, H] are given."""
    module = drawn(Eagle3(form)).double()
    masks = module.entry(module.mask_hidden).expand(1, DRAFTS - 1, -1)
    x = torch.cat([torch.from_numpy(features).double()[None], masks], dim=1)
    ids = [*tokens[1:], *[MASK] * (DRAFTS - 1)]
    best = module.step(table[ids][None], x)[1][0, -DRAFTS:].argmax(-1).tolist()
    return [KEPT[i] if form.drafted < 260 else i for i in best]


def test_drafts_are_the_references_behind_drafts_of_which_some_stood(
    made: tuple[Bundle, Form], checkpoint: Path
) -> None:
    """After the prompt, after a draft of which two tokens stood, and after none did; two sequences
    of different lengths side by side. What masks wrote is never read."""
    engine: Any = load(made[0].path)
    random, table = np.random.default_rng(2), table_of(checkpoint)
    ones = [DraftedSequence(engine, "p-eagle", random, n, 260, SIZES.hidden) for n in (6, 11)]
    for accepted in (0, 2, 0):
        for one in ones:
            one.choose(accepted)
        trees = draft_together([one.drafter.draft(Bid.free(DRAFTS + 1)) for one in ones])
        for one, tree in zip(ones, trees, strict=True):
            assert isinstance(tree, Tree), tree
            one.draft = tree.token_list[1:]
            assert one.draft == filled(made[1], table, one.tokens, one.features)


def test_tokens_are_plains(made: tuple[Bundle, Form]) -> None:
    engine = free(made[0].path)
    prompts = [[5, 9, 2], [1] * 9, list(range(40, 57))]
    options: dict[str, Any] = {"max_new_tokens": 24, "ignore_eos": True}
    plain = [r.tokens for r in engine.generate(prompts, recipe="plain", **options)]
    drafted = engine.generate(prompts, **options)
    assert [r.tokens for r in drafted] == plain
    assert sum(r.stats.drafted for r in drafted) > 200


def test_a_head_without_its_mask_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    form = Form(SIZES, taps=2, host_hidden=48, drafted=260)
    head = files(form, tmp_path / "bare", speculators_model_type="peagle", mask_token_id=None)
    with pytest.raises(CheckpointError, match="mask_hidden"):
        optimize(checkpoint, tmp_path / "out", head=str(head))
    head = files(FORMS["two"], tmp_path / "whole")
    with pytest.raises(GraftlineError, match="use --recipe p-eagle"):
        optimize(checkpoint, tmp_path / "out", head=str(head), recipe="eagle-3")
    assert not (tmp_path / "out").exists()
