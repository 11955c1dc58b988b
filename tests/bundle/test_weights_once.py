"""A bundle's weights exist once, as the checkpoint has them where that will do."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx_ir as ir
import pytest

from graftline.build.assemble import link_files
from graftline.build.check import check
from graftline.build.optimize import optimize
from graftline.bundle.pack import pack
from graftline.bundle.reader import Bundle
from graftline.bundle.store import load_graph
from graftline.bundle.weight_file import WeightFile
from graftline.errors import BundleError
from graftline.tensors import Widened
from tests.bundle.engine_weights import generated, weights


def test_an_fp32_bundle_of_bf16_weights_holds_the_engines_alone(fp32: Bundle) -> None:
    held = weights(fp32)
    assert held.keys() == {"engine.weights"}
    engine = load_graph(fp32.graph("ort-cpu")).graph.initializers.values()
    needed = {t.offset: t.nbytes for t in tensors(engine) if isinstance(t, ir.ExternalTensor)}
    assert held["engine.weights"] <= 1.01 * sum(needed.values())
    for stage in ("export", "canonical"):
        assert all(not isinstance(t, Widened) for t in tensors(load_graph(fp32.graph(stage)).graph
                   .initializers.values())), stage  # fmt: skip


def tensors(values: Any) -> list[ir.TensorProtocol]:
    return [v.const_value for v in values if v.const_value is not None]


def test_an_int4_bundle_adds_its_engine_and_shares_the_checkpoint(
    int4: Bundle, host: Callable[[str], Path]
) -> None:
    held = weights(int4)
    assert held.keys() == {"engine.weights", "source/0/BF16.safetensors"}
    assert int4.file("source/0/BF16.safetensors").samefile(host("BF16"))
    assert check(int4.path).holds


def test_a_file_that_is_linked_out_of_a_bundle_keeps_its_name(int4: Bundle, tmp_path: Path) -> None:
    """`tune` makes a bundle again of its own files, any number of times."""
    export, linked = load_graph(int4.graph("export")), dict[Path, str]()
    weights = WeightFile(tmp_path, "w", lambda size: None, widens=True)
    link_files([export], weights, "source", linked, lambda file, rel: True)
    assert list(linked.values()) == ["source/0/BF16.safetensors"]


def test_a_copied_bundle_holds_what_the_graphs_read_and_no_more(
    host: Callable[[str], Path], tmp_path: Path
) -> None:
    bundle = optimize(host("BF16"), tmp_path / "copy.graft", dtype="int4", weights="copy")
    held = weights(bundle)
    assert held.keys() == {"engine.weights", "source/source.weights"}
    assert held["source/source.weights"] <= 1.05 * host("BF16").stat().st_size
    assert bundle.file("source/source.weights").stat().st_nlink == 1
    assert load_graph(bundle.graph("export")).graph.initializers.keys() > {"embed.weight"}


def test_an_engine_of_the_checkpoints_precision_points_into_its_file(
    host: Callable[[str], Path], tmp_path: Path
) -> None:
    bundle = optimize(host("F32"), tmp_path / "same.graft")
    held = weights(bundle)
    assert held.keys() == {"engine.weights", "weights/0/F32.safetensors"}
    assert held["engine.weights"] < held["weights/0/F32.safetensors"]
    packed = pack(bundle.path, tmp_path / "packed")
    assert weights(Bundle.open(packed.path)).keys() == {"engine.weights"}
    assert generated(packed.path) == generated(bundle.path)


@pytest.mark.parametrize("how", ["replaced", "written to", "removed"])
def test_a_weight_file_that_changes_meanwhile_is_noticed(
    host: Callable[[str], Path], tmp_path: Path, how: str
) -> None:
    """After the graph points into it, and again between linking it and the end."""
    for at in ("kv-cache", "proof: the engine against"):
        file = host("F16")

        def change(line: str, at: str = at, file: Path = file) -> None:
            if not line.startswith(at):
                return
            data = file.read_bytes()
            if how == "written to":
                file.write_bytes(data[:-1] + b"?")
                os.utime(file, ns=(1, 1))
                return
            file.unlink()
            if how == "replaced":
                file.write_bytes(data)

        told = "was replaced or changed while it was read; nothing was written, run the command"
        with pytest.raises(BundleError, match=told):
            optimize(file, tmp_path / "out.graft", dtype="int4", watch=change)
        assert os.listdir(tmp_path) == []
