"""Bundles with DFlash heads: a block of masks filled at once, whole or causal."""

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
from graftline.runtimes.drafting import draft_together
from graftline.runtimes.load import load
from graftline.tree import Tree
from tests.drafted_sequence import DraftedSequence
from tests.free_engine import free
from tests.models.heads.reference_dflash import DFlash, Form
from tests.models.heads.reference_layers import Sizes, drawn, state, written
from tests.tiny_checkpoints import write_tokenizer

SIZES = Sizes(hidden=48, heads=3, kv_heads=1, head_size=16, mlp=80, vocabulary=260, layers=3)
"""Heads that GroupQueryAttention takes, if it is let."""
WHOLE = Form(SIZES, taps=2, block=5)
FORMS = {
    "whole": replace(WHOLE, windows=(6, 0)),
    "jetspec": replace(WHOLE, causal=(True, True)),
}
MASK, LAYERS = 259, [0, 1]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("dflash") / "host"
    folder = tiny("llama", place, vocab_size=260, max_position_embeddings=512)
    write_tokenizer(folder)
    return folder


def files(form: Form, folder: Path, own: Any = None, **changes: Any) -> Path:
    kinds = ["sliding_attention" if w else "full_attention" for w in form.windows]
    switches: dict[str, Any] = {
        "architectures": ["DFlashDraftModel"], "model_type": "qwen3", "block_size": form.block,
        "num_hidden_layers": form.layers, "layer_types": kinds,
        "use_sliding_window": any(form.windows), "sliding_window": max(form.windows) or None,
        "dflash_config": {
            "target_layer_ids": LAYERS, "mask_token_id": MASK, "causal_head": all(form.causal),
            **(own or {}),
        },
    }  # fmt: skip
    config = SIZES.config(**{**switches, **changes})
    return written(folder, config, state(drawn(DFlash(form))))


@pytest.fixture(scope="module", params=FORMS)
def made(request: pytest.FixtureRequest, checkpoint: Path) -> tuple[Bundle, Form]:
    form, folder = FORMS[request.param], checkpoint.parent
    head = files(form, folder / request.param)
    return optimize(checkpoint, folder / f"{request.param}.graft", head=str(head)), form


def test_the_head_is_proven_with_its_block(made: tuple[Bundle, Form]) -> None:
    bundle, form = made
    stage: Any = bundle.manifest.stages["head.0"]
    whole = not form.causal[0]
    assert bundle.manifest.recipe == ("dflash" if whole else "jetspec")
    assert (stage.facts.block, stage.facts.causal, stage.facts.anchor_drafts) == (
        form.block, not whole, False,
    )  # fmt: skip
    laws = {(w.graft.partition("{")[0], w.law): w.status for w in bundle.manifest.laws
            if w.owner == "head.0"}  # fmt: skip
    wanted = [("canonicalize", "neutral"), ("kv-cache", "chunked"), ("features", "opened"),
              ("head.0", "whole"), ("head.0", "taps")]  # fmt: skip
    wanted += [("block-mask", "branches"), ("block-mask", "any-order")] if whole else []
    assert {laws[row] for row in wanted} == {"held"}
    report = check(bundle.path)
    assert report.holds, [f for f in report.findings if not f.holds]


def test_what_sees_a_block_whole_is_not_grouped_and_a_causal_one_is(
    made: tuple[Bundle, Form],
) -> None:
    from graftline.bundle.store import load_graph

    graph = load_graph(made[0].graph("head.0")).graph
    nodes = [n for n in graph if n.op_type.endswith("Attention")]
    causal = made[1].causal[0]
    assert {n.op_type for n in nodes} == {"GroupQueryAttention" if causal else "Attention"}
    cut = [v.producer().op_type for n in nodes for v in n.inputs[1:4]] if not causal else ["Slice"]
    assert set(cut) == {"Slice"}, "it reads the slots in use and not the whole buffer"


def weights(checkpoint: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    found = load_file(checkpoint / "model.safetensors")
    table = found["model.embed_tokens.weight"].double()
    head = found.get("lm_head.weight", found["model.embed_tokens.weight"]).double()
    return {"table": table, "head": head}


class Reference(DFlash):
    """The head over features, which stand for fc of the taps."""

    def filled(self, host: dict[str, torch.Tensor], tokens: list[int], features: Any) -> list[int]:
        """What it drafts behind `tokens` [N + 1], of which the first N have features [N, H]."""
        self.fc = torch.nn.Identity()
        block = [tokens[-1], *[MASK] * (self.form.block - 1)]
        taps = torch.from_numpy(features).double()[None]
        states = self(host["table"][block][None], taps)[0]
        return (states @ host["head"].T)[1:].argmax(-1).tolist()


def reference(form: Form) -> Reference:
    return drawn(Reference(form)).double()


def test_drafts_are_the_references_behind_drafts_of_which_some_stood(
    made: tuple[Bundle, Form], checkpoint: Path
) -> None:
    """After the prompt, after a draft of which two tokens stood, and after none did; two sequences
    of different lengths side by side, one read in several calls."""
    bundle, form = made
    engine: Any = load(bundle.path)
    random, host = np.random.default_rng(2), weights(checkpoint)
    ones = [DraftedSequence(engine, "dflash", random, n, 260, SIZES.hidden) for n in (6, 290)]
    for accepted in (0, 2, 0):
        for one in ones:
            one.choose(accepted)
        trees = draft_together([one.drafter.draft(Bid.free(9)) for one in ones])
        for one, tree in zip(ones, trees, strict=True):
            assert isinstance(tree, Tree), tree
            one.draft = tree.token_list[1:]
            assert one.draft == reference(form).filled(host, one.tokens, one.features)
    for one in ones:
        one.choose(4)
        fewer = draft_together([one.drafter.draft(Bid.free(3))])[0]
        assert isinstance(fewer, Tree)
        expected = reference(form).filled(host, one.tokens, one.features)
        assert fewer.token_list[1:] == expected[:2], "a part of the block is of the whole block"
        again = draft_together([one.drafter.draft(Bid.free(9))])[0]
        assert isinstance(again, Tree)
        assert again.token_list[1:] == expected, "nothing of a block is held"


def test_tokens_are_plains_alone_and_in_a_ragged_batch(made: tuple[Bundle, Form]) -> None:
    engine = free(made[0].path)
    prompts = [[5, 9, 2], [1] * 9, list(range(40, 57))]
    options: dict[str, Any] = {"max_new_tokens": 24, "ignore_eos": True}
    plain = [r.tokens for r in engine.generate(prompts, recipe="plain", **options)]
    assert [engine.generate(p, **options).tokens for p in prompts] == plain
    drafted = engine.generate(prompts, **options)
    assert [r.tokens for r in drafted] == plain
    assert sum(r.stats.drafted for r in drafted) > 200


@pytest.mark.parametrize(
    ("form", "own", "changes", "message"),
    [
        (replace(WHOLE, windows=(4, 0)), {"causal_head": False}, {},
         "windows smaller than its block"),
        (replace(WHOLE, windows=(6, 0)), {"causal_head": None}, {},
         "some see a block whole and others only backwards"),
        (WHOLE, {"final_logit_softcapping": 20.0}, {}, "soft-capped logits"),
        (WHOLE, {"target_layer_ids": [0, 2]}, {"num_target_layers": 3},
         "the final norm's output among its taps"),
    ],
)  # fmt: skip
def test_what_is_read_and_not_built_is_named(
    tmp_path: Path, form: Form, own: Any, changes: Any, message: str
) -> None:
    head = open_head(files(form, tmp_path / "head", own, **changes))
    with pytest.raises(CheckpointError, match=message):
        dflash_shape(head)


def test_a_dflash2_head_is_refused_before_its_host_is_read(tmp_path: Path) -> None:
    form = replace(WHOLE, convolution=(2, 4), selector=(7, 5))
    own = {
        "conv_kernel_size": 2, "conv_group_size": 4, "selector_rank": 7, "selector_top_k": 5,
    }  # fmt: skip
    head = files(form, tmp_path / "head", own)
    with pytest.raises(CheckpointError, match="'dflash2', which is read and not yet built"):
        optimize(tmp_path / "none", tmp_path / "out", head=str(head))


def test_a_whole_block_needs_the_recipe_with_its_mask(checkpoint: Path, tmp_path: Path) -> None:
    head = str(files(WHOLE, tmp_path / "head"))
    with pytest.raises(GraftlineError, match=r"has no block-mask .*use --recipe dflash"):
        optimize(checkpoint, tmp_path / "out", head=head, recipe="jetspec")
