"""A bundle with a Domino head: a recurrent state of a block's tokens corrects those behind them."""

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
from graftline.models.heads import open_head
from graftline.models.heads.dflash_host import dflash_shape
from graftline.runtimes.drafter import Bid
from graftline.runtimes.drafting import draft_together
from graftline.runtimes.load import load
from graftline.tree import Tree
from tests.drafted_sequence import DraftedSequence
from tests.eagle_drafts import SIZES, lm_head
from tests.free_engine import answers_are_plains
from tests.models.heads.reference_dflash import DFlash, Form
from tests.models.heads.reference_layers import drawn, state, written

BLOCK, MASK, STATE, WIDTH, PREFIX = 5, 259, 9, 11, 1
FORM = Form(SIZES, taps=1, block=BLOCK, domino=(STATE, WIDTH))
PROMPTS = [[5, 9, 2], [1] * 9, list(range(40, 57))]


def files(folder: Path, shifted: bool, **own: Any) -> Path:
    config = SIZES.config(
        architectures=["DFlashDraftModel"], model_type="qwen3", block_size=BLOCK,
        num_hidden_layers=FORM.layers,
        dflash_config={
            "target_layer_ids": [0], "mask_token_id": MASK, "projector_type": "domino",
            "gru_hidden_dim": STATE, "emb_dim": WIDTH, "shift_label": shifted,
            "pure_draft_prefix_len": PREFIX, **own,
        },
    )  # fmt: skip
    return written(folder, config, state(drawn(DFlash(FORM))))


@pytest.fixture(scope="module", params=[False, True], ids=["behind-the-anchor", "shifted"])
def made(
    request: pytest.FixtureRequest, wide_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Bundle, bool]:
    """With shifted labels every row drafts what follows its token, the first too."""
    folder = tmp_path_factory.mktemp("domino")
    head = files(folder / "head", shifted=request.param)
    return optimize(wide_checkpoint, folder / "domino.graft", head=str(head)), request.param


def test_the_head_is_proven_with_its_walk(made: tuple[Bundle, bool]) -> None:
    bundle, shifted = made
    manifest = bundle.manifest
    assert manifest.recipe == "domino"
    laws = {(w.graft.partition("{")[0], w.law): w.status for w in manifest.laws
            if w.owner == "head.0"}  # fmt: skip
    wanted = [("markov", "walk"), ("block-mask", "any-order"), ("head.0", "whole")]
    assert {laws[row] for row in wanted} == {"held"}
    if not shifted:
        report = check(bundle.path)
        assert report.holds, [f for f in report.findings if not f.holds]


def walked(host: tuple[Any, Any], tokens: list[int], features: Any, shifted: bool) -> list[int]:
    """What the reference drafts behind `tokens` [N + 1], of which the first N have features: each
    row of the block, or each behind the first, with the state of all tokens so far."""
    table, scores = host
    module = drawn(DFlash(FORM)).requires_grad_(False)
    module.fc = torch.nn.Identity()
    block = [tokens[-1], *[MASK] * (BLOCK - 1)]
    states = module(table[block][None], torch.from_numpy(features).double()[None])
    begins = 0 if shifted else 1
    chain, first = [tokens[-1]], PREFIX + begins
    for row in range(begins, BLOCK):
        logits = scores @ states[0, row]
        if row >= first:
            known = table[[*chain, *[0] * (BLOCK - len(chain))]][None]
            logits = logits + module.corrected(states, known, first, shifted)[0, row - first]
        chain.append(int(logits.argmax()))
    return chain[1:]


def test_drafts_are_the_references_behind_drafts_of_which_some_stood(
    made: tuple[Bundle, bool],
) -> None:
    """After the prompt, after a draft of which two tokens stood, and after none did; two sequences
    of different lengths side by side."""
    bundle, shifted = made
    engine: Any = load(bundle.path)
    host = torch.from_numpy(engine.resources.embedding().copy()).double(), lm_head(bundle)
    random = np.random.default_rng(2)
    ones = [DraftedSequence(engine, "dspark", random, n, 260, SIZES.hidden) for n in (6, 11)]
    drafted: list[int] = []
    for accepted in (0, 2, 0):
        for one in ones:
            one.choose(accepted)
        trees = draft_together([one.drafter.draft(Bid.free(9)) for one in ones])
        for one, tree in zip(ones, trees, strict=True):
            assert isinstance(tree, Tree), tree
            one.draft = tree.token_list[1:]
            assert one.draft == walked(host, one.tokens, one.features, shifted)
            drafted.append(len(one.draft))
    assert drafted == [BLOCK - 1 + shifted] * 6


@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_tokens_are_plains_alone_and_in_a_batch(
    made: tuple[Bundle, bool], temperature: float
) -> None:
    answers_are_plains(made[0].path, PROMPTS, temperature)


@pytest.mark.parametrize(
    ("own", "message"),
    [({"sample_from_anchor": True}, "whose shift_label and sample_from_anchor contradict"),
     ({"conv_kernel_size": 2, "conv_group_size": 4}, "base_kernel")],
)  # fmt: skip
def test_other_forms_are_refused(tmp_path: Path, own: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        dflash_shape(open_head(files(tmp_path, shifted=False, **own)))
