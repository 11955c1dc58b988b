"""Heads that are damaged, hostile or another model's: one clear line each."""

from __future__ import annotations

import pickle
import warnings
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from graftline.errors import CheckpointError
from graftline.facts import DecoderFacts
from graftline.models.heads import Head, Tap, open_head
from tests.models.heads import test_eagle as eagle
from tests.models.heads import test_eagle3 as eagle3
from tests.models.heads import test_hydra as hydra
from tests.models.heads.reference_eagle3 import Eagle3, Form
from tests.models.heads.reference_hydra import Stacks
from tests.models.heads.reference_layers import TINY, Sizes, drawn, state, written
from tests.models.heads.refusing import refuses
from tests.models.refusals import Bomb

HOST = DecoderFacts(
    vocabulary=61, hidden=24, layers=12, heads=4, kv_heads=2, head_size=6, positions=0,
    source="host",
)  # fmt: skip


def host(**changes: int) -> DecoderFacts:
    return DecoderFacts(**{**vars(HOST), **changes})


def does_not_fit(head: Head, facts: DecoderFacts, words: str) -> None:
    with pytest.raises(CheckpointError, match=words) as caught:
        head.check(facts)
    assert "\n" not in str(caught.value)


def test_half_written_safetensors(tmp_path: Path) -> None:
    folder = written(tmp_path, *eagle._files())
    file = folder / "model.safetensors"
    whole = file.read_bytes()
    file.write_bytes(whole[:-100])
    with pytest.raises(CheckpointError, match=r"model\.safetensors: truncated \(\d+ bytes, header"):
        open_head(folder)
    file.write_bytes(whole[:20])
    with pytest.raises(CheckpointError, match="truncated or not a safetensors file"):
        open_head(folder)


@pytest.mark.parametrize("share", [0.0, 0.1, 0.6, 0.999])
def test_half_written_pickles(tmp_path: Path, share: float) -> None:
    folder = hydra.pickled(tmp_path, state(drawn(Stacks(TINY, 2, 1))))
    file = folder / "hydra_lm_head.pt"
    whole = file.read_bytes()
    file.write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(CheckpointError, match=r"hydra_lm_head\.pt: damaged \(.*download it again"):
        open_head(folder)


def test_pickled_code_is_named_and_never_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = hydra.pickled(tmp_path / "bomb", state(drawn(Stacks(TINY, 2, 1))))
    file = folder / "hydra_lm_head.pt"
    torch.save({"x": Bomb()}, file, pickle_module=pickle)
    with pytest.raises(CheckpointError, match=r"holds code, io\.open, which is not run"):
        open_head(folder)
    file.write_bytes(pickle.dumps(Bomb()))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's, about the pickle's protocol
        with pytest.raises(CheckpointError, match=r"hydra_lm_head\.pt: "):
            open_head(folder)
    assert not (tmp_path / "exploded").exists()


def test_a_pickle_of_other_things(tmp_path: Path) -> None:
    folder = hydra.pickled(tmp_path, state(drawn(Stacks(TINY, 2, 1))))
    torch.save({"state": {"x": torch.ones(2)}}, folder / "hydra_lm_head.pt")
    with pytest.raises(CheckpointError, match="holds more than tensors"):
        open_head(folder)
    with zipfile.ZipFile(folder / "hydra_lm_head.pt", "w") as archive:
        archive.writestr("readme.txt", "no tensors")
    with pytest.raises(CheckpointError, match=r"hydra_lm_head\.pt: damaged"):
        open_head(folder)


def test_weights_beside_those_that_are_read_are_named(tmp_path: Path) -> None:
    """EAGLE's own loader tries pytorch_model.bin first, transformers model.safetensors."""
    config, tensors = eagle._files()
    folder = written(tmp_path, config, tensors)
    torch.save({k: v + 1 for k, v in tensors.items()}, folder / "pytorch_model.bin")
    head = open_head(folder)
    assert "pytorch_model.bin is not read" in head.decided
    assert np.array_equal(head.tensors["fc.weight"].numpy(), tensors["fc.weight"].numpy())
    (folder / "model.safetensors").rename(folder / "other.safetensors")
    head = open_head(folder)
    assert "other.safetensors is not read" in head.decided
    assert not any("pytorch_model.bin" in line for line in head.decided)


def test_a_folder_without_weights(tmp_path: Path) -> None:
    folder = written(tmp_path, *eagle._files())
    (folder / "model.safetensors").unlink()
    refuses(folder, "no model.safetensors")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_numbers_that_are_not_finite(tmp_path: Path, value: float) -> None:
    config, tensors = eagle3.files(Form())
    tensors["layers.0.mlp.down_proj.weight"][3, 7] = value
    halves = {k: v.half() if v.is_floating_point() else v for k, v in tensors.items()}
    head = open_head(written(tmp_path, config, halves))
    does_not_fit(head, HOST, r"tensor 'layers\.0\.down\.weight' holds numbers that are not finite")


def test_another_models_head(tmp_path: Path) -> None:
    head = open_head(written(tmp_path, *eagle3.files(Form())))
    head.check(HOST)
    words = r"vocab_size is 61, but host needs 62 \(vocabulary\); the head was made for another"
    does_not_fit(head, host(vocabulary=62), words)
    words = r"'fc\.weight' for 3 taps is 72, but host needs 96 \(3 x hidden size\)"
    does_not_fit(head, host(hidden=32), words)


def test_sizes_that_a_graph_does_not_say_are_not_compared(tmp_path: Path) -> None:
    head = open_head(written(tmp_path, *eagle._files()))
    head.check(host(vocabulary=0, hidden=0))


def test_layers_that_the_host_does_not_have(tmp_path: Path) -> None:
    folder = written(tmp_path, *eagle3.files(Form()))
    open_head(folder).check(host(layers=5))
    does_not_fit(open_head(folder), host(layers=3), "reads the output of layer n-4, but host has 3")
    given = open_head(folder, taps=[Tap(1), Tap(5), Tap(12)])
    does_not_fit(given, HOST, "reads the output of layer 12, but host has 12 layers")
    given = open_head(folder, taps=[Tap(1), Tap(5, normed=True), Tap(8)])
    does_not_fit(given, HOST, "behind the final norm was given for layer 5, which is not the last")


def test_another_widths_tensor(tmp_path: Path) -> None:
    config, tensors = eagle3.files(Form())
    tensors["layers.0.mlp.up_proj.weight"] = torch.zeros(41, 24)
    words = r"'layers\.0\.mlp\.up_proj\.weight' is \[41, 24\], but .* it must be \[40, 24\]"
    refuses(written(tmp_path, config, tensors), words)
    tensors["fc.weight"] = torch.zeros(24)
    refuses(written(tmp_path, config, tensors), r"tensor 'fc\.weight' is \[24\], not a matrix")


def test_integers_where_floats_should_be(tmp_path: Path) -> None:
    config, tensors = eagle._files()
    tensors["fc.weight"] = torch.zeros(24, 48, dtype=torch.int8)
    with pytest.raises(CheckpointError, match=r"tensor 'fc\.weight' .* is INT8 but"):
        open_head(written(tmp_path, config, tensors))


def test_a_config_of_other_sizes(tmp_path: Path) -> None:
    for changes, words in (
        ({"hidden_size": 25, "head_dim": None}, "hidden_size=25 is not divisible by num_attention"),
        ({"num_attention_heads": 0}, "num_attention_heads=0 is not a whole number of 1 or more"),
        ({"num_key_value_heads": 3}, "is not divisible by 3 KV heads"),
        ({"rms_norm_eps": "small"}, "rms_norm_eps='small' is not a number"),
        ({"hidden_act": "gelu"}, "hidden_act='gelu' is not hosted; known: silu"),
        ({"rope_scaling": {"type": "longrope"}}, "rope_type='longrope' is not hosted"),
        ({"rope_scaling": {"type": "linear", "factor": 2.0, "twist": 1}}, "twist=1 is a key that"),
    ):  # fmt: skip
        config, tensors = eagle3.files(Form(), **changes)
        refuses(written(tmp_path, config, tensors), words)


def test_rotary_scaling_is_in_the_settings(tmp_path: Path) -> None:
    numbers = {
        "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }  # fmt: skip
    scaling = {"rope_type": "llama3", **numbers}
    old, new = Form(), {"rope_parameters": {**scaling, "rope_theta": 1e4}, "rope_theta": None}
    config, tensors = eagle3.files(old, rope_scaling=scaling)
    ropes = [open_head(written(tmp_path, config, tensors)).settings.block.rope]
    config, tensors = eagle3.files(old, **new)
    ropes.append(open_head(written(tmp_path, config, tensors)).settings.block.rope)
    assert ropes[0] == ropes[1]
    assert (ropes[0].kind, ropes[0].numbers, ropes[0].theta) == ("llama3", numbers, 1e4)
    config, tensors = eagle3.files(old, rope_scaling={"type": "mrope", "mrope_section": [1, 1, 1]})
    assert open_head(written(tmp_path, config, tensors)).settings.block.rope.kind == "default"
    config, tensors = eagle3.files(old, rope_theta=None)
    head = open_head(written(tmp_path, config, tensors))
    assert "config.json has no rope_theta: 10000, transformers' default" in head.decided


def test_a_head_of_smollm2s_size(tmp_path: Path) -> None:
    """With real widths and bf16, which is read as it lies in the file."""
    sizes = Sizes(576, 9, 3, 64, 1536, 49152, 30, 1e-5, 1e5)
    form = Form(sizes, host_hidden=576, drafted=4096)
    _, tensors = eagle3.files(form)
    halves = {k: v.bfloat16() if v.is_floating_point() else v for k, v in tensors.items()}
    config = sizes.config(draft_vocab_size=4096, torch_dtype="bfloat16")
    head = open_head(written(tmp_path, config, eagle3.midlayer(halves)))
    head.check(
        DecoderFacts(
            vocabulary=49152, hidden=576, layers=30, heads=9, kv_heads=3, head_size=64,
            positions=8192,
        )
    )  # fmt: skip
    assert [tap.index(30) for tap in head.taps] == [1, 14, 26]
    for name in ("layers.0.query.weight", "lm_head.weight"):
        narrow = head.tensors[name].narrow  # type: ignore[attr-defined]
        assert Path(narrow.path) == (tmp_path / "model.safetensors").resolve()
    module = Eagle3(form)
    module.load_state_dict({k: v.float() for k, v in halves.items() if v.is_floating_point()})
    mine, module = eagle3.Evaluation(head), module.double()
    taps = torch.randn(1, 3, 3 * 576, dtype=torch.float64)
    embeddings = torch.randn(1, 3, 576, dtype=torch.float64)
    want = module.step(embeddings, module.entry(taps))[1].detach().numpy()
    got = mine.step(embeddings.numpy(), mine.entry(taps.numpy()))[1]
    eagle3.assert_same(got, want, 20_000)
    assert np.array_equal(head.tensors["draft_ids"].numpy(), eagle3.ids(form).numpy())
