"""A host without tokens goes the way of every other: laws, bundle, lowering, inspect, check."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
from typer.testing import CliRunner

from graftline import load, load_decoder, optimize
from graftline.build.check import check
from graftline.bundle.reader import Bundle
from graftline.bundle.store import load_graph
from graftline.commands.cli import app
from graftline.errors import GraftlineError, LawBroken, RequestError
from graftline.facts import DenoiserFacts
from graftline.kinds.denoiser import Denoiser
from graftline.kinds.kind import Parts
from graftline.models.checkpoint import open_checkpoint
from graftline.passes import Pipeline
from graftline.passes.anchors.denoiser import find_denoiser
from graftline.passes.anchors.roles import OnePass
from graftline.passes.canonical.one_pass import CanonicalizeOnePass
from graftline.passes.graph.mismatch import Mismatch
from tests.kinds.denoisers import export_denoiser


@pytest.fixture(scope="module")
def graph(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export_denoiser(tmp_path_factory.mktemp("unet") / "unet.onnx")


@pytest.fixture(scope="module")
def bundle(graph: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return optimize(graph, tmp_path_factory.mktemp("out") / "unet.graft")


def test_it_is_known_by_its_shapes(graph: Path) -> None:
    host = open_checkpoint(graph).host()
    assert isinstance(host.facts, DenoiserFacts)
    assert (host.facts.channels, host.facts.height, host.facts.width) == (4, 0, 0)
    large = Denoiser(most=2048).small(host.model, 1 << 30)
    assert isinstance(large, str)
    assert re.fullmatch(
        r"the network weighs \S+ [KM]iB, of which the oracle takes 2\.0 KiB here", large
    )
    found = find_denoiser(host.model.graph)
    assert isinstance(found, OnePass)
    assert {role.name: role.value.name for role in (*found.inputs, found.output)} == {
        "sample": "latent", "timestep": "t", "prediction": "noise",
    }  # fmt: skip


def test_its_bundle_predicts_what_the_file_does(graph: Path, bundle: Bundle) -> None:
    assert {p.name for p in bundle.manifest.main.ports} == {"sample", "timestep", "prediction"}
    assert bundle.manifest.recipe == ""
    random = np.random.default_rng(5)
    sample = random.standard_normal((3, 4, 24, 40)).astype(np.float32)
    step = np.asarray([0, 10, 999])
    theirs: Any = onnxruntime.InferenceSession(str(graph)).run(None, {"latent": sample, "t": step})
    ours = load_decoder(bundle.path).decode(sample, timestep=step)
    np.testing.assert_allclose(ours, theirs[0], rtol=1e-5, atol=1e-5)


def test_every_pass_and_the_engine_are_held_to_laws(bundle: Bundle) -> None:
    laws = {(w.graft.partition("{")[0], w.law): w.status for w in bundle.manifest.laws}
    held = [
        ("canonicalize-one-pass", "neutral"), ("canonicalize-one-pass", "interface"),
        ("lower-ort", "neutral"), ("ort-cpu", "whole"), ("export", "checkpoint"),
    ]  # fmt: skip
    assert {laws[row] for row in held} == {"held"}


def test_check_holds_and_finds_another_weight(graph: Path, tmp_path: Path) -> None:
    bundle = optimize(graph, tmp_path / "unet.graft", weights="copy")
    report = check(bundle.path)
    assert report.holds, [f for f in report.findings if not f.holds]
    assert any(f.what == "prediction" and f.status == "held" for f in report.findings)
    stored = load_graph(bundle.graph("ort-cpu"))
    name = next(n for n, v in stored.graph.initializers.items() if v.const_value.nbytes > 1024)  # type: ignore[union-attr]
    weight = stored.graph.initializers[name].const_value
    assert isinstance(weight, ir.ExternalTensor)
    with Path(weight.path).open("r+b") as file:
        file.seek(weight.offset or 0)
        file.write(np.float32(7).tobytes())
    assert not check(bundle.path).holds


def test_the_proof_sees_an_engine_that_predicts_something_else(
    graph: Path, bundle: Bundle, tmp_path: Path
) -> None:
    copy = Path(shutil.copytree(bundle.path, tmp_path / "copy"))
    wrong = ir.load(copy / "ort-cpu.onnx")
    dilate(wrong)
    ir.save(wrong, copy / "ort-cpu.onnx")
    parts = Parts(copy, bundle.manifest.stages, "ort-cpu", "ort-cpu")
    with pytest.raises(LawBroken, match="ort-cpu breaks the law 'whole' at 'prediction'"):
        Denoiser().prove(parts, graph, "", lambda line: None)


def dilate(model: ir.Model) -> None:
    """Another network of the same shapes."""
    node = next(n for n in model.graph if n.op_type == "Conv")
    node.attributes["dilations"] = ir.AttrInt64s("dilations", [2, 2])
    node.attributes["pads"] = ir.AttrInt64s("pads", [2, 2, 2, 2])


def test_a_pass_that_changes_the_prediction_breaks_a_law(graph: Path) -> None:
    class Wrong(CanonicalizeOnePass):
        def apply(self, model: ir.Model) -> None:
            super().apply(model)
            dilate(model)

    raw = open_checkpoint(graph).host().model
    model = raw.clone()
    Pipeline((Wrong(),)).run(model)
    with pytest.raises(LawBroken, match=r"'neutral' at 'prediction'"):
        Denoiser().front_law(raw, model)


def test_inspect_shows_it(bundle: Bundle, graph: Path) -> None:
    for path in (bundle.path, graph):
        result = CliRunner().invoke(app, ["inspect", str(path)])
        assert result.exit_code == 0, result.output
        assert "denoiser" in result.output
        assert "prediction" in result.output


def test_what_is_a_decoders_is_refused(graph: Path, bundle: Bundle, tmp_path: Path) -> None:
    asked: list[tuple[dict[str, Any], str]] = [
        ({"recipe": "pard"}, "--draft"), ({"recipe": "suffix"}, "--recipe is for decoders"),
        ({"draft": "int8"}, "--draft is for decoders"),
        ({"dtype": "int8", "quantizer": "rtn"}, "--dtype int8 is for decoders"),
        ({"passes": "kv-cache"}, "run anchors first"),
    ]  # fmt: skip
    for options, message in asked:
        with pytest.raises(GraftlineError, match=message):
            optimize(graph, tmp_path / "x.graft", **options)
    assert not (tmp_path / "x.graft").exists()
    with pytest.raises(RequestError, match="denoiser, which takes no prompt"):
        load(bundle.path, recipe="suffix")


def test_conditions_are_fed_and_kept(tmp_path: Path) -> None:
    made = optimize(
        export_denoiser(tmp_path / "c.onnx", conditioned=True), tmp_path / "c.graft"
    )
    assert {p.name for p in made.manifest.main.ports} >= {"condition.0"}
    assert check(made.path).holds


def value(name: str, shape: list[int | str]) -> ir.Value:
    return ir.Value(name=name, shape=ir.Shape(shape), type=ir.TensorType(ir.DataType.FLOAT))


@pytest.mark.parametrize(
    ("more", "out", "message"),
    [
        ({}, ["B", 4, "H", "W"], "0 inputs of one number"),
        ({"t": ["B"]}, ["B", 4, 8, 8], "differ in height or width"),
        ({"t": ["B"], "z": ["B", 4, "H", "W"]}, ["B", 4, "H", "W"], "2 inputs .B, C, H, W."),
        ({"t": ["B"], "m": ["B", 1, 1, 1, 1]}, ["B", 4, "H", "W"], "not vectors of floats"),
    ],
)
def test_other_graphs_are_no_denoisers(
    more: dict[str, list[int | str]], out: list[int | str], message: str
) -> None:
    inputs = [value("x", ["B", 4, "H", "W"]), *(value(n, shape) for n, shape in more.items())]
    found = find_denoiser(ir.Graph(inputs, [value("y", out)], nodes=[], opset_imports={"": 20}))
    assert isinstance(found, Mismatch)
    assert re.search(message, found.reason)
