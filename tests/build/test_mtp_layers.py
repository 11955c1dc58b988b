"""A bundle with an MTP head of several layers, each of which drafts a token (DeepSeek-V3)."""

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
from graftline.models.heads.mtp import by_depth
from graftline.runtimes.drafter import Bid
from graftline.runtimes.drafting import draft_together
from graftline.runtimes.load import load
from graftline.tree import Tree
from tests.eagle_drafts import SIZES, DraftedSequence
from tests.free_engine import answers_are_plains
from tests.models.heads.reference_layers import drawn, state, written
from tests.models.heads.reference_mtp import Behind, Mtp

LAYERS, BLOCKS = 3, 2
PROMPTS = [[5, 9, 2], [1] * 9, list(range(40, 57))]


def modules() -> list[Any]:
    return [drawn(Behind(SIZES), seed) for seed in range(LAYERS)]


def files(folder: Path) -> Path:
    """As a checkpoint has them: behind the host's last block, the tables once."""
    tensors = {
        f"model.layers.{BLOCKS + k}.{name}": tensor
        for k, module in enumerate(modules())
        for name, tensor in state(module).items()
        if k == 0 or not name.startswith(("embed_tokens", "shared_head.head"))
    }
    config = SIZES.config(
        model_type="glm4_moe", num_hidden_layers=BLOCKS, num_nextn_predict_layers=LAYERS
    )
    return written(folder, config, tensors)


@pytest.fixture(scope="module")
def bundle(wide_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    folder = tmp_path_factory.mktemp("mtp")
    return optimize(wide_checkpoint, folder / "mtp.graft", head=str(files(folder / "head")))


def test_each_layer_is_proven_and_made_again(bundle: Bundle) -> None:
    manifest = bundle.manifest
    owners = [name for name, stage in manifest.stages.items() if stage.role == "engine"]
    assert owners == ["ort-cpu", "head.0", "head.1", "head.2"]
    for owner in owners[1:]:
        held = {(row.graft, row.law) for row in manifest.laws
                if row.owner == owner and row.status == "held"}  # fmt: skip
        assert {(owner, "whole"), (owner, "taps")} <= held
    report = check(bundle.path)
    assert report.holds, [f for f in report.findings if not f.holds]


def rolled_out(tokens: list[int], features: Any) -> list[int]:
    """What the reference drafts behind `tokens` [N + 1], whose features [N, H] are given: depth k
    reads, at every position, the state of the depth before and the token k + 1 places on."""
    layers, text, drafts = modules(), tokens[1:], list[int]()
    table, states = layers[0].embed_tokens.weight, torch.from_numpy(features).double()[None]
    with torch.no_grad():
        for number, layer in enumerate(layers):
            ids = [*text, *drafts][number : number + len(text)]
            states, normed = layer.step(table[ids][None], states)
            drafts.append(int((layers[0].shared_head.head.weight @ normed[0, -1]).argmax()))
    return drafts


def test_drafts_are_the_references_whatever_was_accepted(bundle: Bundle) -> None:
    """Behind a prompt, and behind drafts of which 0, 2, 0, 3 and 1 tokens stood; two sequences."""
    engine: Any = load(bundle.path)
    random = np.random.default_rng(2)
    ones = [DraftedSequence(engine, random, length) for length in (6, 11)]
    for accepted in (0, 2, 0, 3, 1):
        for one in ones:
            one.choose(range(accepted + 1))
        trees = draft_together([one.drafter.draft(Bid.free(9)) for one in ones])
        for one, tree in zip(ones, trees, strict=True):
            assert isinstance(tree, Tree), tree
            one.tree = tree
            assert tree.token_list[1:] == rolled_out(one.tokens, one.features)


@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_tokens_are_plains_alone_and_in_a_batch(bundle: Bundle, temperature: float) -> None:
    answers_are_plains(bundle.path, PROMPTS, temperature)


def test_layers_are_taken_apart(tmp_path: Path) -> None:
    """Every layer with its own tensors, and the tables that all share."""
    layers = by_depth(open_head(files(tmp_path)))
    assert [len(one.settings.depths) for one in layers] == [1] * LAYERS
    for one, module in zip(layers, modules(), strict=True):
        fc = one.tensors["depths.0.fc.weight"].numpy()
        np.testing.assert_array_equal(fc, module.eh_proj.weight.detach().numpy())
        assert {"embedding.weight", "lm_head.weight"} <= set(one.tensors)


def test_several_layers_under_one_fc_are_refused(tmp_path: Path) -> None:
    config = SIZES.config(model_type="qwen3", num_hidden_layers=2, mtp_num_hidden_layers=2)
    tensors = {f"mtp.{name}": t for name, t in state(drawn(Mtp(SIZES, 0.0))).items()}
    with pytest.raises(CheckpointError, match=r"mtp_num_hidden_layers=2 is not hosted \(several"):
        open_head(written(tmp_path, config, tensors))
