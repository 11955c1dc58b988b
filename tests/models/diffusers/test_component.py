"""Networks as diffusers writes them: their exports are held to the modules, wrong folders refused.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from graftline.evaluate import Feed
from graftline.kinds import kind_of
from graftline.models.checkpoint import open_checkpoint
from graftline.models.diffusers.component import DiffusersComponent
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
    "flux": (folders.FLUX, ["[B,4,2*H,2*W]", "[B]", "[B,L,6]", "[B,5]", "[B]"]),
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
