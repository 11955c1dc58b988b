"""Bundles with DSpark heads: each token of a block is scored by the one before it."""

from __future__ import annotations

from dataclasses import replace
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
from graftline.models.heads.dflash_host import dflash_shape
from graftline.models.tiny import tiny
from graftline.runtimes.drafter import Bid
from graftline.runtimes.drafters import make_drafter
from graftline.runtimes.drafting import draft_together
from graftline.runtimes.load import load
from graftline.tree import Tree
from tests.drafted_sequence import DraftedSequence
from tests.free_engine import free
from tests.markov_host import HIDDEN, VOCABULARY, MarkovCheckpoint, around, path_of
from tests.models.heads.reference_dflash import DFlash, Form
from tests.models.heads.reference_layers import Sizes, drawn, state, written
from tests.tiny_checkpoints import WIDE, write_tokenizer

SIZES = Sizes(hidden=48, heads=3, kv_heads=1, head_size=16, mlp=80, vocabulary=260, layers=3)
KEPT = list(range(3, 260, 2))
WHOLE = Form(SIZES, taps=2, block=5, markov="vanilla", confidence=True)
FORMS = {
    "gated": replace(WHOLE, markov="gated", drafted=len(KEPT), embedding=True),
    "rnn": replace(WHOLE, markov="rnn", with_markov=False),
}
MASK = 259


def files(form: Form, folder: Path, tensors: Any = None, **own: Any) -> Path:
    folder.mkdir(exist_ok=True)
    layers = [0, 1] if form.taps == 2 else [0]
    config = form.sizes.config(
        architectures=["DFlashDraftModel"], model_type="qwen3", block_size=form.block,
        num_hidden_layers=form.layers, draft_vocab_size=form.drafted or form.sizes.vocabulary,
        dflash_config={
            "target_layer_ids": layers, "mask_token_id": MASK, "projector_type": "dspark",
            "markov_rank": form.rank, "markov_head_type": form.markov,
            "enable_confidence_head": form.confidence,
            "confidence_head_with_markov": form.with_markov, **own,
        },
    )  # fmt: skip
    found = tensors or state(drawn(DFlash(form)))
    if form.drafted:
        found["d2t"] = torch.tensor(KEPT) - torch.arange(len(KEPT))
    return written(folder, config, found)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tiny("llama", tmp_path_factory.mktemp("dspark") / "host", vocab_size=260)
    write_tokenizer(folder)
    return folder


@pytest.fixture(scope="module", params=FORMS)
def made(request: pytest.FixtureRequest, checkpoint: Path) -> tuple[Bundle, Form]:
    form, folder = FORMS[request.param], checkpoint.parent
    head = files(form, folder / request.param)
    return optimize(checkpoint, folder / f"{request.param}.graft", head=str(head)), form


def test_the_head_is_proven_with_its_walk(made: tuple[Bundle, Form]) -> None:
    manifest = made[0].manifest
    assert manifest.recipe == "dspark"
    laws = {(w.graft.partition("{")[0], w.law): w.status for w in manifest.laws
            if w.owner == "head.0"}  # fmt: skip
    wanted = [("markov", "walk"), ("block-mask", "any-order"), ("head.0", "whole")]
    assert {laws[row] for row in wanted} == {"held"}
    report = check(made[0].path)
    assert report.holds, [f for f in report.findings if not f.holds]


def weights(checkpoint: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    found = load_file(checkpoint / "model.safetensors")
    table = found["model.embed_tokens.weight"].double()
    return {"table": table, "head": found.get("lm_head.weight", table).double()}


class Reference(DFlash):
    """The head over features, which stand for fc of the taps."""

    def walked(
        self, host: dict[str, torch.Tensor], tokens: list[int], features: Any
    ) -> tuple[list[int], list[float]]:
        """What it drafts behind `tokens` [N + 1], of which the first N have features [N, H], token
        by token; and how sure it is of each."""
        self.fc, form = torch.nn.Identity(), self.form
        table, head = host["table"], host["head"]
        if form.embedding:
            table, head = self.embed_tokens.weight, self.lm_head.weight
        block = [tokens[-1], *[MASK] * (form.block - 1)]
        states = self(table[block][None], torch.from_numpy(features).double()[None])
        chain, sure = [tokens[-1]], list[float]()
        for row in range(form.block):
            before, upto = torch.tensor([chain]), states[:, : row + 1]
            logits = upto @ head.T + self.markov_head(before, upto)
            best = int(logits[0, -1].argmax())
            known = self.markov_head.markov_w1(before)
            read = torch.cat([upto, known], dim=-1) if form.with_markov else upto
            if form.confidence:
                sure.append(float(torch.sigmoid(self.confidence_head.proj(read))[0, -1, 0]))
            chain.append(KEPT[best] if form.drafted else best)
        return chain[1:], sure


def test_drafts_are_the_references_behind_drafts_of_which_some_stood(
    made: tuple[Bundle, Form], checkpoint: Path
) -> None:
    """After the prompt, after a draft of which two tokens stood, and after none did; two sequences
    of different lengths side by side."""
    bundle, form = made
    engine: Any = load(bundle.path)
    random, host = np.random.default_rng(2), weights(checkpoint)
    module = drawn(Reference(form)).double().requires_grad_(False)
    ones = [DraftedSequence(engine, "dspark", random, n, 260, SIZES.hidden) for n in (6, 11)]
    for accepted in (0, 2, 0):
        for one in ones:
            one.choose(accepted)
        trees = draft_together([one.drafter.draft(Bid.free(9)) for one in ones])
        for one, tree in zip(ones, trees, strict=True):
            assert isinstance(tree, Tree), tree
            one.draft = tree.token_list[1:]
            tokens, sure = module.walked(host, one.tokens, one.features)
            assert one.draft == tokens
            assert np.allclose(one.drafter._sure, sure, rtol=0, atol=260 * 2.0**-22)


def test_a_draft_ends_where_it_is_not_sure(made: tuple[Bundle, Form]) -> None:
    """At a price of a row above the chance of the first two tokens together."""
    engine: Any = load(made[0].path)
    one = DraftedSequence(engine, "dspark", np.random.default_rng(3), 6, 260, SIZES.hidden)
    one.choose(0)
    (tree,) = draft_together([one.drafter.draft(Bid.free(6))])
    assert isinstance(tree, Tree)
    assert len(tree) == 6
    first, second = (one.drafter._sureness.of(sure) for sure in one.drafter._sure[:2])
    one.choose(0)
    one.drafter._sureness = type(one.drafter._sureness)()
    keep = first * second * 1.01
    (tree,) = draft_together([one.drafter.draft(Bid(6, (0.0,) * 6, (keep,) * 6))])
    assert isinstance(tree, Tree)
    assert len(tree) < 6


def test_tokens_are_plains_alone_and_in_a_ragged_batch(made: tuple[Bundle, Form]) -> None:
    engine = free(made[0].path)
    prompts = [[5, 9, 2], [1] * 9, list(range(40, 57))]
    options: dict[str, Any] = {"max_new_tokens": 24, "ignore_eos": True}
    plain = [r.tokens for r in engine.generate(prompts, recipe="plain", **options)]
    assert [engine.generate(p, **options).tokens for p in prompts] == plain
    drafted = engine.generate(prompts, **options)
    assert [r.tokens for r in drafted] == plain
    assert sum(r.stats.drafted for r in drafted) > 200


RIGHT = Form(
    Sizes(hidden=HIDDEN, heads=2, kv_heads=1, head_size=16, mlp=64, vocabulary=VOCABULARY),
    layers=1, taps=1, block=8, windows=(0,), causal=(False,), markov="vanilla", rank=VOCABULARY,
)  # fmt: skip


@pytest.mark.parametrize("dtype", ["fp32", "int8"])
def test_a_right_head_is_accepted_to_its_end(
    known_checkpoints: dict[Path, Any], tmp_path: Path, dtype: str
) -> None:
    """Its Markov head says what follows each token; the block itself says next to nothing."""
    path = path_of(tmp_path, "markov")
    known_checkpoints[path] = MarkovCheckpoint(path, WIDE)
    tensors = state(drawn(DFlash(RIGHT)))
    follows = torch.tensor([around(token) for token in range(VOCABULARY)])
    tensors["markov_head.markov_w1.weight"] = torch.eye(VOCABULARY)
    tensors["markov_head.markov_w2.weight"] = 1e3 * torch.eye(VOCABULARY)[follows].T.contiguous()
    head = files(RIGHT, tmp_path / "right", tensors)
    bundle = optimize(path, tmp_path / "right.graft", head=f"{head}:{dtype}")
    result = free(bundle.path).generate([5, 9, 2], max_new_tokens=46, ignore_eos=True)
    assert result.tokens == [(2 + 7 * n) % VOCABULARY for n in range(1, 47)]
    assert result.stats.mat > 7.0, "eight tokens are drafted where nothing has a cost"


def test_what_is_read_and_not_built_is_named(tmp_path: Path) -> None:
    head = open_head(files(FORMS["rnn"], tmp_path / "late", sample_from_anchor=False))
    with pytest.raises(CheckpointError, match="a Markov head whose first row does not draft"):
        dflash_shape(head)


def test_options_that_a_walk_cannot_have_are_refused() -> None:
    with pytest.raises(GraftlineError, match="leave out `sampled`"):
        make_drafter("dspark", {"sampled": True})
