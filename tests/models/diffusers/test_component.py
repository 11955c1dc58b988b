"""Networks as diffusers writes them: their exports are held to the modules, wrong folders refused.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from safetensors.torch import load_file, save_file

from graftline.errors import BackendError, CheckpointError, LawBroken
from graftline.evaluate import Feed
from graftline.kinds import kind_of
from graftline.models.checkpoint import open_checkpoint
from graftline.models.diffusers.component import EARLIER, DiffusersComponent
from graftline.models.diffusers.networks import NETWORKS
from graftline.models.host import Host
from graftline.models.reference import OwnNetwork
from graftline.passes import GRAFTS, Pipeline
from graftline.passes.laws.compare import Comparison
from graftline.ports import read_ports
from graftline.raw_ports import read_raw
from tests.models.diffusers import folders
from tests.models.diffusers.folders import VAE, write_component

CLASSES: dict[str, tuple[dict[str, Any], list[str]]] = {
    "unet": (folders.HALVING, ["[B,3,2*H,2*W]", "[B]", "[B]"]),
    "sdxl": (folders.XL, ["[B,4,H,W]", "[B]", "[B,L,6]", "[B,5]", "[B,10]", "[B,6]"]),
    "dit": (folders.DIT, ["[B,4,8,8]", "[B]", "[B]"]),
    "sd3": (folders.SD3, ["[B,4,2*H,2*W]", "[B]", "[B,L,6]", "[B,5]"]),
    "flux": (folders.FLUX, ["[B,3,2*H,2*W]", "[B]", "[B,L,6]", "[B,5]", "[B]"]),
    "vae": (VAE, ["[B,4,H,W]"]),
    "tiny vae": (folders.TINY_VAE, ["[B,4,H,W]"]),
}


def outputs(host: Host, seed: int) -> tuple[Feed, Feed]:
    """Of the canonical graph in ONNX Runtime, and of the module, by the export's names."""
    from graftline.runtimes.ort.held import open_model

    kind, model = kind_of(host.facts), host.model.clone()
    Pipeline.parse(f"{kind.front} | lower-ort", GRAFTS).run(model)
    raw = read_raw(model.metadata_props)
    feed = kind.feed(raw, host.facts, seed)
    assert isinstance(host.own, OwnNetwork)
    expected = host.own.run([feed])
    assert not isinstance(expected, str), expected
    session = open_model(model, 0)
    ours = {p.name: f.name for p, f in zip(raw, read_ports(model), strict=True)}
    given = {ours[name]: array for name, array in feed.items()}
    names = [p.name for p in raw if p.direction == "out"]
    made: Any = session.run([ours[name] for name in names], given)
    return dict(zip(names, made, strict=True)), expected[0]


@pytest.mark.parametrize("name", CLASSES)
def test_an_export_computes_what_the_module_computes(name: str, tmp_path: Path) -> None:
    config, shapes = CLASSES[name]
    checkpoint = open_checkpoint(write_component(tmp_path / "part", config))
    assert isinstance(checkpoint, DiffusersComponent)
    host = checkpoint.host()
    assert [str(v.shape) for v in host.model.graph.inputs] == shapes
    for seed in (0, 1):
        got, expected = outputs(host, seed)
        assert got.keys() == expected.keys()
        for output, array in expected.items():
            assert np.abs(array).max() > 1e-2
            Comparison("export", "checkpoint").output(output, got[output], array)


def test_every_class_is_compared() -> None:
    known = {config["_class_name"] for config, _ in CLASSES.values()}
    assert known == set(NETWORKS)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_component(tmp_path_factory.mktemp("small") / "vae", folders.TINY_VAE)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"_class_name": "AutoencoderKLWan"}, "_class_name is AutoencoderKLWan; did you mean"),
        ({"_class_name": "HunyuanDiT2DModel"}, "_class_name is HunyuanDiT2DModel; did you mea"),
        ({"decoder_block_out_channels": [4, 8]}, "'decoder.*' would be .* it is"),
        ({"num_decoder_blocks": [2, 1]}, "tensor 'decoder.*' is missing in its safetensors"),
        ({"act_fn": "relux"}, "config.json: AutoencoderTiny cannot be made of it"),
    ],
)  # fmt: skip
def test_a_config_that_does_not_fit_is_refused_by_its_field(
    small: Path, tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    copy = Path(shutil.copytree(small, tmp_path / "vae"))
    config = json.loads((copy / "config.json").read_text()) | change
    (copy / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=message) as caught:
        DiffusersComponent(copy).host()
    assert str(copy) in str(caught.value)


def test_the_scaling_of_latents_is_the_configs_or_its_classs(tmp_path: Path) -> None:
    file, part = tmp_path / "config.json", DiffusersComponent(tmp_path)
    for config, scaling in ((VAE, (0.5, 0.1)), ({"_class_name": "AutoencoderKL"}, (0.18215, 0))):
        file.write_text(json.dumps(config))
        assert part.scaling() == scaling
    file.write_text(json.dumps(VAE | {"scaling_factor": "1"}))
    with pytest.raises(CheckpointError, match=r"config.json: scaling_factor is '1'; correct it"):
        part.scaling()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"class_embed_type": "timestep"}, "class_embed_type is 'timestep', which asks for inputs"),
        ({"addition_embed_type": "image", "encoder_hid_dim": 4}, "addition_embed_type is 'image'"),
    ],
)
def test_inputs_that_are_not_hosted_are_refused_by_their_field(
    tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    (tmp_path / "config.json").write_text(json.dumps(folders.CONDITIONED | change))
    with pytest.raises(CheckpointError, match=f"config.json: {message}"):
        DiffusersComponent(tmp_path).host()


@pytest.mark.parametrize(
    ("change", "message"),
    [({"patch_size": 2}, "patch_size is 2"), ({"out_channels": 8}, "out_channels is 8 and in_cha")],
)
def test_what_no_pipeline_of_flux_draws_is_refused_by_its_field(
    tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    (tmp_path / "config.json").write_text(json.dumps(folders.FLUX | change))
    with pytest.raises(CheckpointError, match=f"config.json: {message}"):
        DiffusersComponent(tmp_path).host()


def test_a_tensor_that_the_module_does_not_have_is_named(small: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(small, tmp_path / "vae"))
    file = copy / "diffusion_pytorch_model.safetensors"
    tensors = load_file(file)
    save_file(tensors | {"decoder.more": tensors["decoder.layers.0.bias"].clone()}, file)
    with pytest.raises(CheckpointError, match=r"AutoencoderTiny has no tensor 'decoder.more', whi"):
        open_checkpoint(copy).host()


def test_weights_that_are_not_there_are_named(small: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(small, tmp_path / "vae"))
    file = copy / "diffusion_pytorch_model.safetensors"
    shutil.copy(file, copy / "diffusion_pytorch_model.fp16.safetensors")
    file.rename(copy / "diffusion_pytorch_model.bf16.safetensors")
    with pytest.raises(CheckpointError, match=r"but 2 variants; keep one"):
        open_checkpoint(copy).host()
    for variant in copy.glob("*.safetensors"):
        variant.unlink()
    with pytest.raises(CheckpointError, match=r"no diffusion_pytorch_model.safetensors; download"):
        open_checkpoint(copy).host()


def test_diffusers_is_asked_for_by_its_extra(
    small: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "diffusers", None)
    words = r'^diffusers is not installed; run: pip install "graftline\[diffusers\]"$'
    with pytest.raises(BackendError, match=words):
        open_checkpoint(small).host()


def test_names_of_before_0_13_are_read(tmp_path: Path) -> None:
    place = write_component(tmp_path / "vae", VAE)
    file = place / "diffusion_pytorch_model.safetensors"
    tensors = load_file(file)
    for new, old in EARLIER.items():
        for name in [n for n in tensors if f".{new}." in n]:
            tensors[name.replace(new, old)] = tensors.pop(name)
    assert any(".proj_attn." in name for name in tensors)
    save_file(tensors, file)
    got, expected = outputs(open_checkpoint(place).host(), 0)
    Comparison("export", "checkpoint").output("decoded", got["decoded"], expected["decoded"])


def test_an_export_with_another_weight_is_not_the_module(small: Path) -> None:
    host = open_checkpoint(small).host()
    name = next(n for n in host.model.graph.initializers if n.endswith("weight"))
    value = host.model.graph.initializers[name]
    assert value.const_value is not None
    value.const_value = ir.tensor(value.const_value.numpy() * np.float32(1.01), name=name)
    got, expected = outputs(host, 0)
    with pytest.raises(LawBroken):
        Comparison("export", "checkpoint").output("decoded", got["decoded"], expected["decoded"])
