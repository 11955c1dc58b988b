"""The speculators format: the same heads by another config, with layers counted differently."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from graftline.models.heads import Tap, open_head
from graftline.models.heads.dflash_parts import Domino
from tests.models.heads import test_dflash as dflash
from tests.models.heads import test_eagle3 as eagle3
from tests.models.heads import test_mtp as mtp
from tests.models.heads.reference_dflash import DFlash
from tests.models.heads.reference_eagle3 import Eagle3, Form
from tests.models.heads.reference_layers import TINY, drawn, state, written
from tests.models.heads.reference_mtp import Mtp
from tests.models.heads.refusing import refuses

IDS = "eagle_aux_hidden_state_layer_ids"


def config(kind: str, layer: dict[str, Any], **own: Any) -> dict[str, Any]:
    """A config as the library saves it."""
    return {
        "architectures": ["Eagle3DraftModel"], "auto_map": {"": "config.Eagle3SpeculatorConfig"},
        "base_model_ep_plan": None, "dtype": "bfloat16", "has_no_defaults_at_init": False,
        "speculators_model_type": kind, "speculators_version": "0.4.0.1",
        "tie_word_embeddings": False, "transformers_version": "4.57.1",
        "speculators_config": {
            "algorithm": kind, "default_proposal_method": "greedy",
            "proposal_methods": [{
                "accept_tolerance": 0.0, "proposal_type": "greedy", "speculative_tokens": 3,
                "verifier_accept_k": 1,
            }],
            "verifier": {"architectures": ["LlamaForCausalLM"], "name_or_path": "some/model"},
        },
        "transformer_layer_config": layer, **own,
    }  # fmt: skip


def eagle(kind: str, form: Form, **own: Any) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    _, tensors = eagle3.files(form)
    layer = TINY.config(num_hidden_layers=form.layers, model_type="llama")
    switches: dict[str, Any] = {
        "draft_vocab_size": form.drafted, "norm_before_residual": form.residual_normed,
        "norm_before_fc": form.norm_before_fc, "fc_norm": form.fc_norm, IDS: [2, 6, 9],
        "norm_output": form.norm_output, "target_hidden_size": None, "embed_requires_grad": False,
    }  # fmt: skip
    return config(kind, layer, **{**switches, **own}), tensors


@pytest.mark.parametrize(
    "form",
    [
        Form(embedding=True, residual_normed=True), Form(embedding=True, fc_norm=True),
        Form(embedding=True, norm_before_fc=True, norm_output=True, layers=2),
    ],
)  # fmt: skip
def test_eagle3_computes_the_reference(tmp_path: Path, form: Form) -> None:
    head = open_head(written(tmp_path, *eagle("eagle3", form)))
    assert (head.family, head.settings.own_embedding) == ("eagle3", True)
    module, mine = drawn(Eagle3(form)), eagle3.Evaluation(head)
    taps = torch.randn(2, 5, 3 * TINY.hidden, dtype=torch.float64)
    embeddings = torch.randn(2, 5, TINY.hidden, dtype=torch.float64)
    want = module.step(embeddings, module.entry(taps))
    got = mine.step(embeddings.numpy(), mine.entry(taps.numpy()))
    for one, other in zip(got, want, strict=True):
        eagle3.assert_same(one, other.detach().numpy(), 2000)


def test_layers_are_those_that_are_entered(tmp_path: Path) -> None:
    """Their ids are indices of `hidden_states`: one more than the layer whose output is read."""
    head = open_head(written(tmp_path / "named", *eagle("eagle3", Form())))
    assert head.taps == (Tap(1), Tap(5), Tap(8))
    assert any("counts layers as they are entered: [2, 6, 9] are" in line for line in head.decided)
    head = open_head(written(tmp_path / "none", *eagle("eagle3", Form(), **{IDS: None})))
    assert [tap.index(12) for tap in head.taps] == [1, 5, 8]


def test_p_eagle_has_a_mask(tmp_path: Path) -> None:
    form = Form(mask=True, embedding=True)
    head = open_head(written(tmp_path, *eagle("peagle", form, mask_token_id=60)))
    assert (head.family, head.settings.mask_token) == ("peagle", 60)
    assert head.tensors["mask_hidden"].shape.numpy() == (1, 1, 3 * TINY.hidden)


def test_fc_is_applied_to_a_single_tap(tmp_path: Path) -> None:
    head = open_head(written(tmp_path, *eagle("eagle3", Form(taps=1), **{IDS: [12]})))
    assert head.taps == (Tap(11),)


def block(kind: str, form: Any, **own: Any) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """A DFlash or DSpark head with a vocabulary and a table of its own."""
    form = replace(form, drafted=23, embedding=True)
    tensors = state(drawn(DFlash(form)))
    ids = eagle3.ids(Form())
    tensors["d2t"] = ids - torch.arange(23)
    tensors["t2d"] = torch.zeros(61, dtype=torch.bool)
    tensors["t2d"][ids] = True
    layer = TINY.config(
        num_hidden_layers=2, model_type="qwen3", attention_bias=False, sliding_window=3,
        layer_types=["sliding_attention", "full_attention"], use_sliding_window=True,
        max_window_layers=0,
    )  # fmt: skip
    switches = {
        "draft_vocab_size": 23, "block_size": 4, "target_hidden_size": None, "mask_token_id": 60,
        "aux_hidden_state_layer_ids": [2, 6, 10], "sliding_window_non_causal": False,
        "sample_from_anchor": kind == "dspark",
    }  # fmt: skip
    return config(kind, layer, **{**switches, **own}), tensors


def test_dflash_computes_the_reference(tmp_path: Path) -> None:
    for name, open_ahead in (("causal", False), ("open", True)):
        files = block("dflash", dflash.PLAIN, sliding_window_non_causal=open_ahead)
        head = open_head(written(tmp_path / name, *files))
        assert (head.family, head.taps) == ("dflash", (Tap(1), Tap(5), Tap(9)))
        assert (head.settings.windows, head.settings.causal) == ((3, 0), (not open_ahead, False))
        form = replace(dflash.PLAIN, drafted=23, embedding=True, windows=(3, 0))
        dflash.assert_computes(head, replace(form, causal=(not open_ahead, False)))
    assert (head.settings.own_embedding, head.settings.own_lm_head) == (True, True)
    assert head.tensors["draft_ids"].numpy().tolist() == eagle3.ids(Form()).tolist()


def test_a_config_with_the_librarys_defaults_opens(tmp_path: Path) -> None:
    """Each has a value for keys of training and of Domino, whatever its projector is."""
    defaults: dict[str, Any] = {
        "pure_draft_prefix_len": 1, "emb_dim": 256, "gru_hidden_dim": 1024, "shift_label": False,
        "projector_type": "dflash", "lambda_base_start": 1.0, "lambda_base_decay_ratio": 1.0,
        "auf": False, "ce_loss_alpha": 0.1, "l1_loss_alpha": 0.9,
    }  # fmt: skip
    head = open_head(written(tmp_path / "a", *block("dflash", dflash.PLAIN, **defaults)))
    assert (head.family, head.settings.domino) == ("dflash", None)
    shifted = written(tmp_path / "b", *block("dflash", dflash.PLAIN, shift_label=True))
    refuses(shifted, "shift_label=True is not hosted")
    form = replace(dflash.PLAIN, domino=(9, 11))
    defaults |= {"projector_type": "domino", "emb_dim": 11, "gru_hidden_dim": 9,
                 "shift_label": True, "sample_from_anchor": True}  # fmt: skip
    files, tensors = block("dflash", form, **defaults)
    head = open_head(written(tmp_path / "c", files, tensors))
    assert head.family == "domino"
    assert head.settings.domino == Domino(9, 11, 1, True)


def test_what_one_level_leaves_open_the_other_says(tmp_path: Path) -> None:
    config, tensors = block("dflash", dflash.PLAIN, sliding_window=3)
    config["transformer_layer_config"]["sliding_window"] = None
    assert open_head(written(tmp_path, config, tensors)).settings.windows == (3, 0)


def test_dspark_scores_the_heads_own_vocabulary(tmp_path: Path) -> None:
    form, own = dflash.spark("gated")
    own = {k: v for k, v in own.items() if k != "projector_type"}
    head = open_head(written(tmp_path, *block("dspark", form, **own)))
    assert (head.family, head.settings.anchor_drafts) == ("dspark", True)
    assert head.tensors["markov.w1"].shape.numpy() == (61, 5)
    assert head.tensors["markov.w2"].shape.numpy() == (23, 5)


def test_mtp_computes_the_reference(tmp_path: Path) -> None:
    """The norms are those of the layer's model_type, though the names are the format's."""
    for kind, offset in (("qwen3_next", 1.0), ("qwen3", 0.0)):
        form = mtp.QWEN if offset else {"query_norm": True, "rotary": 4}
        module = drawn(Mtp(mtp.SIZED, offset, None, **form))
        names = {
            "fc": "input_proj", "norm": "final_layernorm", "layers.0": "",
            "pre_fc_norm_hidden": "hidden_layernorm", "pre_fc_norm_embedding": "token_layernorm",
        }  # fmt: skip
        tensors = {}
        for key, value in state(module).items():
            stem = "layers.0" if key.startswith("layers.0.") else key.removesuffix(".weight")
            middle = f"{names[stem]}." if names[stem] else ""
            tensors[f"mtp_layers.0.{middle}{key.removeprefix(stem + '.')}"] = value
        layer = mtp.qwen(model_type=kind)
        folder = written(tmp_path / kind, config("mtp", layer, num_nextn_predict_layers=1), tensors)
        head = open_head(folder)
        assert (head.family, head.settings.norm_offset) == ("mtp", offset)
        mtp.assert_computes(head, module)
        two = config("mtp", layer, num_nextn_predict_layers=2)
        refuses(written(tmp_path / f"{kind}2", two, tensors), "num_nextn_predict_layers=2 is not")
        del tensors["mtp_layers.0.token_layernorm.weight"]
        folder = written(tmp_path / f"{kind}3", config("mtp", layer), tensors)
        refuses(folder, r"tensor 'mtp_layers\.0\.token_layernorm\.weight' is missing")


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("xpress", "XPress heads are not hosted"), ("lilicorr", "LiLiCorr heads are not hosted"),
        ("mlp", "'mlp' is not hosted; known: dflash, dspark, eagle3, mtp, peagle"),
    ],
)  # fmt: skip
def test_other_kinds_are_refused_by_name(tmp_path: Path, kind: str, words: str) -> None:
    refuses(written(tmp_path, *eagle(kind, Form())), words)


def test_unknown_switches_are_refused(tmp_path: Path) -> None:
    refuses(written(tmp_path, *eagle("eagle3", Form(), swirl=True)), "swirl=True is a key that")
    settings, tensors = eagle("eagle3", Form())
    settings["transformer_layer_config"]["qk_clip"] = 3
    refuses(written(tmp_path, settings, tensors), "qk_clip=3 is a key that")
    settings, tensors = eagle("eagle3", Form(), vocab_size=62)
    words = "vocab_size=62, but transformer_layer_config says 61"
    refuses(written(tmp_path, settings, tensors), words)
