"""What a path is taken for, in the order of the formats' signs, and what is refused by name."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from graftline.errors import CheckpointError
from graftline.models.heads import open_head
from tests.models.heads import test_dflash as dflash
from tests.models.heads import test_eagle as eagle
from tests.models.heads import test_eagle3 as eagle3
from tests.models.heads import test_hydra as hydra
from tests.models.heads import test_mtp as mtp
from tests.models.heads.reference_eagle3 import Form
from tests.models.heads.reference_hydra import Stacks
from tests.models.heads.reference_layers import TINY, drawn, state, written
from tests.models.heads.reference_mtp import Mtp
from tests.models.heads.refusing import refuses

Files = tuple[dict[str, Any], dict[str, torch.Tensor]]


def _hydra() -> Files:
    return hydra.config("mlp", 2), state(drawn(Stacks(TINY, 2, 1)))


def _mtp() -> Files:
    return mtp.qwen(), mtp.whole(drawn(Mtp(mtp.SIZED, 1.0, None, **mtp.QWEN)), "mtp.")


@pytest.mark.parametrize(
    ("files", "decided"),
    [
        (_hydra, "Hydra heads, by hydra_head_arch in config.json"),
        (lambda: dflash.files(dflash.PLAIN), "a DFlash head, by dflash_config in config.json"),
        (lambda: eagle3.files(Form()), "an EAGLE-3 head, by tensor 'd2t'"),
        (eagle._files, "an EAGLE-1/2 head, by tensor 'fc.weight' of width 48, and no 'layers.0.in"),
        (_mtp, "an MTP head, by tensor 'mtp.fc.weight'"),
    ],
)
def test_what_was_decided_is_said_with_its_reason(
    tmp_path: Path, files: Callable[[], Files], decided: str
) -> None:
    head = open_head(written(tmp_path, *files()))
    assert head.decided[0].startswith(decided)
    assert all("\n" not in line for line in head.decided)


def test_a_config_outranks_names_of_tensors(tmp_path: Path) -> None:
    """A DFlash head with d2t is no EAGLE-3 head."""
    config, tensors = dflash.files(dflash.PLAIN, draft_vocab_size=23)
    tensors |= {k: v for k, v in eagle3.files(Form())[1].items() if k in ("d2t", "t2d")}
    tensors["lm_head.weight"] = torch.randn(23, TINY.hidden)
    assert open_head(written(tmp_path, config, tensors)).family == "dflash"


def test_weights_alone_or_their_folder(tmp_path: Path) -> None:
    folder = written(tmp_path, *eagle._files())
    head = open_head(folder / "model.safetensors")
    assert head.settings == open_head(folder).settings
    (folder / "config.json").unlink()
    refuses(folder, "not a draft head that graftline knows")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"architectures": ["LlamaForCausalLMEagle4"]}, "licence that bars competing use"),
        ({"architectures": ["Eagle3DeepseekV2ForCausalLM"]}, r"Kimi's MLA\) are not hosted"),
        ({"architectures": ["MLPSpeculatorPreTrainedModel"]}, "MLP speculators are not hosted"),
        ({"model_type": "gemma4_assistant"}, "Gemma-4's assistants are not hosted"),
        ({"pard_token": 5}, "a PARD draft is a whole model; give it as --draft with --recipe pard"),
    ],
)
def test_what_is_not_hosted_is_named(tmp_path: Path, changes: Any, words: str) -> None:
    config, tensors = eagle3.files(Form(), **changes)
    refuses(written(tmp_path, config, tensors), words)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("layers.0.self_attn.kv_a_proj_with_mqa.weight", r"latent attention \(MLA\) are not"),
        ("clover_head_mlp_rnn.input_layernorm.weight", "Clover-2 heads, .* are not hosted"),
        ("lstm.weight_ih_l0", "Falcon heads are not hosted: in the code that they were published"),
    ],
)
def test_what_is_not_hosted_is_named_by_a_tensor(tmp_path: Path, name: str, words: str) -> None:
    config, tensors = eagle._files()
    tensors[name] = torch.ones(2, 2)
    refuses(written(tmp_path, config, tensors), f"tensor '{name}': .*{words}")


def test_a_whole_model_is_no_head(tmp_path: Path) -> None:
    tensors = {"model.layers.0.self_attn.q_proj.weight": torch.ones(2, 2)}
    refuses(written(tmp_path, TINY.config(), tensors), "not a draft head .* known: a head in the")


def test_no_such_path(tmp_path: Path) -> None:
    refuses(tmp_path / "nowhere", "no such file or folder; give a local draft head")


def test_a_config_that_is_no_config(tmp_path: Path) -> None:
    folder = written(tmp_path, *eagle._files())
    for text in ("[1, 2]", "{", json.dumps({"architectures": 3, "hidden_size": "24"})):
        (folder / "config.json").write_text(text)
        with pytest.raises(CheckpointError) as caught:
            open_head(folder)
        assert "\n" not in str(caught.value)
