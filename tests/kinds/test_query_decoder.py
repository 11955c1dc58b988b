"""A decoder of queries goes the way of every other host, and gives the classes of all places."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
from PIL import Image

from graftline import load_decoder, optimize
from graftline.build.check import check
from graftline.bundle.reader import Bundle
from graftline.errors import CheckpointError, GraftlineError, LawBroken, NotApplicable, RequestError
from graftline.facts import QueryDecoderFacts
from graftline.kinds.kind import Parts
from graftline.kinds.query_decoder import QueryDecoder
from graftline.passes.anchors.one_pass import ONE_PASS
from graftline.passes.anchors.query_decoder import find_query_decoder
from graftline.passes.anchors.roles import OnePass
from graftline.passes.graph.mismatch import Mismatch
from graftline.runtimes.one_pass.engine import DecodeEngine
from tests.commands.calling import call, refused
from tests.kinds.canvases import BARE, maskgit
from tests.kinds.chunks import CHUNKED
from tests.kinds.dags import DAG
from tests.kinds.denoisers import export_branching
from tests.kinds.latent_decoders import (
    CAUSAL,
    CODEC,
    CONVERTER,
    UPSCALER,
    VOCODER,
    model_of,
    write,
)
from tests.kinds.query_decoders import (
    ALONE,
    ATTENTION,
    CAMERAS,
    FLAT,
    LINEAR,
    MASKED,
    PIXELS,
    PROTOOCC,
    SIZE,
    export,
    network,
)
from tests.kinds.recognisers import CPPD, PARAFORMER
from tests.kinds.samplers import DENOISER, TWO_HEADS
from tests.kinds.unet import UNET

VOXELS = np.random.default_rng(3).standard_normal((3, 6, *SIZE)).astype(np.float32)
OTHERS = {
    "vocoder": VOCODER, "upscaler": UPSCALER, "codec": CODEC, "converter": CONVERTER,
    "causal": CAUSAL, "paraformer": PARAFORMER, "cppd": CPPD, "dag": DAG, "maskgit": maskgit(),
    "bare": BARE, "denoiser": DENOISER, "two heads": TWO_HEADS, "unet": UNET, "chunked": CHUNKED,
}  # fmt: skip
TWICE = PROTOOCC.replace("RandomNormalLike <seed = 7.0> (embedded)", "Sin (embedded)")
"""The disturbed queries are disturbed by what no node draws."""


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    folder = tmp_path_factory.mktemp("protoocc")
    return optimize(export(folder / "host.onnx"), folder / "host.graft", recipe="protoocc")


@pytest.fixture(scope="module")
def engine(bundle: Bundle) -> DecodeEngine:
    return load_decoder(bundle.path, threads=1)


@pytest.fixture(scope="module")
def pixels(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    folder = tmp_path_factory.mktemp("pixels")
    host = write(PIXELS, folder / "host.onnx")
    return optimize(host, folder / "host.graft", passes="reduce-classes")


def of_torch(voxels: np.ndarray) -> np.ndarray:
    """The scores that the module itself gives."""
    import torch

    with torch.no_grad():
        return network()(torch.from_numpy(voxels))[1].numpy()


def found_in(text: str) -> OnePass | Mismatch:
    return find_query_decoder(model_of(text).graph)


@pytest.mark.parametrize(
    ("text", "facts", "others"),
    [
        (PROTOOCC, QueryDecoderFacts(5, 10, 3), ["voxelwise", "said", "noisy"]),
        (ALONE, QueryDecoderFacts(5, 10, 3), []),
        (PIXELS, QueryDecoderFacts(4, 4, 2), []),
        (MASKED, QueryDecoderFacts(5, 10, 3), ["shapes"]),
        (CAMERAS, QueryDecoderFacts(4, 4, 3), []),
        (FLAT, QueryDecoderFacts(5, 10, 2), ["said"]),
    ],
)
def test_it_is_known_by_what_makes_its_scores(
    text: str, facts: QueryDecoderFacts, others: list[str]
) -> None:
    found = found_in(text)
    assert isinstance(found, OnePass)
    assert found.facts == facts
    assert found.output.role == "scores"
    assert [(role.value.name, role.role) for role in found.others] == [
        (name, "auxiliary") for name in others
    ]


def test_names_and_the_order_of_outputs_do_not_count(bundle: Bundle) -> None:
    graph = ir.load(bundle.path.parent / "host.onnx").graph
    for n, value in enumerate([*graph.inputs, *graph.outputs]):
        value.name = f"v{n}"
    found = find_query_decoder(graph)
    assert isinstance(found, OnePass)
    assert [role.value.name for role in (found.output, *found.others)] == ["v2", "v1", "v3", "v4"]
    assert bundle.manifest.facts.kind == "query-decoder"


@pytest.mark.parametrize("text", [PROTOOCC, ALONE, PIXELS])
def test_no_other_kind_takes_it(text: str) -> None:
    graph = model_of(text).graph
    known = [name for name, find in ONE_PASS.items() if isinstance(find(graph), OnePass)]
    assert known == ["query-decoder"]


def test_it_comes_before_kinds_told_by_shapes(tmp_path: Path) -> None:
    """Scores of queries [B, Q, K] beside those of pixels are those of a recogniser by their
    shape."""
    known = [n for n, find in ONE_PASS.items() if isinstance(find(model_of(FLAT).graph), OnePass)]
    assert known == ["query-decoder", "recogniser"]
    made = optimize(write(FLAT, tmp_path / "x.onnx"), tmp_path / "x.graft", recipe="protoocc")
    assert made.manifest.facts.told() == "5 classes of every pixel by 10 queries in one pass"


@pytest.mark.parametrize("name", OTHERS)
def test_no_other_host_is_taken_for_it(name: str) -> None:
    assert isinstance(found_in(OTHERS[name]), Mismatch)


def test_a_branching_denoiser_is_not_taken_for_it(tmp_path: Path) -> None:
    graph = ir.load(export_branching(tmp_path / "x.onnx")).graph
    assert isinstance(find_query_decoder(graph), Mismatch)


STEADY = ALONE.replace("[8,8] embed)", "[8,8] embed, float[5,10] steady)").replace(
    "(classes, inside)", "(steady, inside)"
)
BOTH = ALONE.replace("scored = MatMul", "told = MatMul").replace(
    "  sizes = Shape", "  scored = Add (told, guessed)\n  sizes = Shape"
)
BENT = PIXELS.replace("scores = Einsum", "asked = Einsum").replace(
    "}\n", "  scores = Sin (asked)\n}\n"
)
APART = PIXELS.replace("bqd,bdhw->bqhw", "bqd,bdhw->bdhw")
STORED = PIXELS.replace("float[B,4,3] told", "float[4,3] told").replace("bqd,", "qd,")
OPEN = PIXELS.replace("float[B,6,H,W] maps", "float[B,C,H,W] maps")
TWO = PIXELS.replace("float[B,4,3] told", "float[B,4,3] told, float[B,1,H,W] more")
LIKE = PIXELS.replace("H,W", "2,2")


@pytest.mark.parametrize(
    ("text", "node", "reason"),
    [
        (STEADY, "MatMul scored", "its rows are stored: a linear layer"),
        (STORED, "Einsum scores", "its rows are stored: a linear layer"),
        (LINEAR, "MatMul made", "its rows are stored: a linear layer"),
        (BOTH, "Add scored", "brings together two things that are known of places"),
        (BENT, "Sin scores", "no product of queries with features makes its scores"),
        (APART, "Einsum scores", "what it sums over is not one axis of both operands"),
        (ATTENTION, "MatMul read", "it sums over places, as an attention does"),
        (LIKE, "Einsum scores", "both operands may go through all places: which does is open"),
        (OPEN, "maps", "the number of the features' channels is not fixed"),
        (TWO, "maps", "its inputs are not one array of features or images"),
        (TWICE, "semantics", "several outputs are scores by queries"),
    ],
)
def test_other_graphs_are_none(text: str, node: str, reason: str) -> None:
    found = found_in(text)
    assert isinstance(found, Mismatch)
    assert reason in found.reason
    assert node in found.node


@pytest.mark.parametrize("name", ["pad-positions", "best-path", "window", "fold-time", "join"])
def test_passes_of_other_kinds_are_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(NotApplicable, match=name):
        optimize(write(PIXELS, tmp_path / "x.onnx"), tmp_path / "x.graft", passes=name)


def test_a_recipe_says_what_a_graph_lacks(tmp_path: Path) -> None:
    why = r"is for a query-decoder; .* a decoder: several outputs .* outputs.prediction .*semantics"
    with pytest.raises(NotApplicable, match=why):
        optimize(write(TWICE, tmp_path / "x.onnx"), tmp_path / "x.graft", recipe="protoocc")
    with pytest.raises(GraftlineError, match="for a query-decoder; the checkpoint is a latent"):
        optimize(write(UPSCALER, tmp_path / "y.onnx"), tmp_path / "y.graft", recipe="protoocc")


def test_a_spec_says_which_output(tmp_path: Path) -> None:
    host, spec = write(TWICE, tmp_path / "host.onnx"), tmp_path / "spec.toml"
    spec.write_text('[outputs]\nprediction = "noisy"\n', encoding="utf-8")
    made = optimize(host, tmp_path / "x.graft", recipe="protoocc", spec=spec)
    feed = {"voxels": VOXELS}
    (scores,) = onnxruntime.InferenceSession(str(host)).run(["noisy"], feed)
    expected = np.asarray(scores).argmax(1)
    np.testing.assert_array_equal(load_decoder(made.path).decode(VOXELS), expected)
    spec.write_text('[outputs]\nprediction = "said"\n', encoding="utf-8")
    with pytest.raises(NotApplicable, match="not a denoiser"):
        optimize(host, tmp_path / "y.graft", recipe="protoocc", spec=spec)
    spec.write_text('[outputs]\nprediction = "noisy"\n[inputs]\nsample = "voxels"\n', "utf-8")
    with pytest.raises(CheckpointError, match="inputs of the spec is for denoisers"):
        optimize(host, tmp_path / "y.graft", recipe="protoocc", spec=spec)


def test_what_only_a_pruned_output_reads_is_no_condition(tmp_path: Path) -> None:
    text = PROTOOCC.replace("X,Y,Z] voxels,", "X,Y,Z] voxels, float[B,10,8] noise,").replace(
        "  noise = RandomNormalLike <seed = 7.0> (embedded)\n", ""
    )
    host, spec = write(text, tmp_path / "host.onnx"), tmp_path / "spec.toml"
    spec.write_text('[outputs]\nprediction = "semantics"\n', encoding="utf-8")
    made = optimize(host, tmp_path / "x.graft", recipe="protoocc", spec=spec)
    assert [p.name for p in made.manifest.main.ports] == ["latents", "classes"]
    assert load_decoder(made.path).decode(VOXELS).shape == (3, *SIZE)


def test_the_laws_hold_and_fewer_numbers_are_handed_over(bundle: Bundle) -> None:
    laws = {(w.graft.partition("{")[0], w.law): w.status for w in bundle.manifest.laws}
    owed = [
        ("canonicalize-one-pass", "neutral"), ("prune-branch", "neutral"), ("export", "checkpoint"),
        ("prune-branch", "pruned"), ("fold-stored", "neutral"), ("fold-stored", "folded"),
        ("reduce-classes", "neutral"), ("reduce-classes", "first-largest"), ("ort-cpu", "whole"),
    ]  # fmt: skip
    assert {laws[row] for row in owed} == {"held"}
    outputs = [p for p in bundle.manifest.main.ports if p.direction == "out"]
    assert [(p.role, p.dtype, p.shape[1:]) for p in outputs] == [("classes", "uint8", SIZE)]
    left = [n.op_type for n in ir.load(bundle.graph("ort-cpu")).graph]
    assert "LayerNormalization" not in left, "the stored prototypes are a constant"
    assert "RandomNormalLike" not in left
    assert check(bundle.path).holds


def test_it_gives_torchs_classes(engine: DecodeEngine) -> None:
    expected = of_torch(VOXELS).argmax(1)
    assert len(np.unique(expected)) > 1
    got = engine.decode(VOXELS)
    assert got.dtype == np.uint8
    np.testing.assert_array_equal(got, expected)
    alone = [engine.decode(VOXELS[n : n + 1])[0] for n in range(len(VOXELS))]
    np.testing.assert_array_equal(alone, expected)
    with pytest.raises(RequestError, match=r"takes \[batch, 6, 6, 4, 8\]"):
        engine.decode(VOXELS[:, :3])


def test_without_passes_it_gives_scores(bundle: Bundle, tmp_path: Path) -> None:
    host, noise = bundle.path.parent / "host.onnx", "prune-branch{outputs=auxiliary.2}"
    with pytest.raises(LawBroken, match=r"'auxiliary.2': .*drawn at random; remove it"):
        optimize(host, tmp_path / "x.graft")
    made = optimize(host, tmp_path / "x.graft", passes=noise)
    got = load_decoder(made.path).decode(VOXELS)
    np.testing.assert_allclose(got, of_torch(VOXELS), atol=1e-5)
    assert [p.role for p in made.manifest.main.ports] == ["latents", "scores", *2 * ["auxiliary"]]
    assert check(made.path).holds


def test_a_condition_goes_by_its_name(pixels: Bundle) -> None:
    random, engine = np.random.default_rng(5), load_decoder(pixels.path)
    maps = random.standard_normal((2, 6, 9, 7)).astype(np.float32)
    told = random.standard_normal((2, 4, 3)).astype(np.float32)
    session = onnxruntime.InferenceSession(str(pixels.path.parent / "host.onnx"))
    (scores,) = session.run(None, {"maps": maps, "told": told})
    expected = np.asarray(scores).argmax(1)
    assert len(np.unique(expected)) > 1
    np.testing.assert_array_equal(engine.decode(maps, told=told), expected)
    with pytest.raises(RequestError, match=r"condition 'condition_0' .* is missing"):
        engine.decode(maps)


def test_images_of_several_cameras(tmp_path: Path) -> None:
    random, host = np.random.default_rng(5), write(CAMERAS, tmp_path / "x.onnx")
    made = optimize(host, tmp_path / "x.graft", passes="reduce-classes{dtype=int32}")
    feed = {
        name: random.standard_normal(shape).astype(np.float32)
        for name, shape in (("images", (3, 2, 3, 4, 8)), ("poses", (3, 2, 4, 4)))
    }
    (scores,) = onnxruntime.InferenceSession(str(host)).run(None, feed)
    got = load_decoder(made.path).decode(feed["images"], poses=feed["poses"])
    assert (got.dtype, got.shape) == (np.int32, (3, 2, 4, 4))
    np.testing.assert_array_equal(got, np.asarray(scores).argmax(1))


def test_a_host_without_outputs_beside_it_needs_no_pruning(tmp_path: Path) -> None:
    host = write(ALONE, tmp_path / "x.onnx")
    with pytest.raises(NotApplicable, match="no output beside the one it is for"):
        optimize(host, tmp_path / "x.graft", recipe="protoocc")
    made = optimize(host, tmp_path / "x.graft", "protoocc", "fold-stored | reduce-classes")
    (scores,) = onnxruntime.InferenceSession(str(host)).run(None, {"voxels": VOXELS})
    expected = np.asarray(scores).argmax(1)
    assert len(np.unique(expected)) > 1
    np.testing.assert_array_equal(load_decoder(made.path).decode(VOXELS), expected)


def test_the_proof_sees_an_engine_of_other_classes(bundle: Bundle, tmp_path: Path) -> None:
    made = optimize(bundle.path.parent / "host.onnx", tmp_path / "x.graft", recipe="protoocc")
    wrong = ir.load(made.graph("ort-cpu"))
    next(n for n in wrong.graph if n.op_type == "Tanh").op_type = "Sigmoid"
    ir.save(wrong, made.graph("ort-cpu"))
    parts = Parts(made.path, made.manifest.stages, "ort-cpu", "ort-cpu")
    with pytest.raises(LawBroken, match=r"ort-cpu breaks the law 'whole' at 'classes': .* places"):
        QueryDecoder().prove(parts, None, "", lambda line: None)
    (found,) = QueryDecoder().answers(made)
    assert not found.holds


def test_the_command_line_writes_classes(
    bundle: Bundle, engine: DecodeEngine, pixels: Bundle, tmp_path: Path
) -> None:
    np.save(tmp_path / "voxels.npy", VOXELS)
    told = ("run", bundle.path, "--latents", tmp_path / "voxels.npy")
    assert call(*told, "-o", tmp_path / "classes.npy").exit_code == 0
    np.testing.assert_array_equal(np.load(tmp_path / "classes.npy"), engine.decode(VOXELS))
    assert "name a file for what is made: -o out.npy or out.png" in refused(*told)
    assert "classes of the pixels of an image" in refused(*told, "-o", tmp_path / "x.png")
    assert "name a .npy file" in refused(*told, "-o", tmp_path / "x.wav", "--sample-rate", "8")
    maps, asked = np.ones((1, 6, 8, 9), np.float32), np.ones((1, 4, 3), np.float32)
    maps[..., 4:] -= 2
    np.save(tmp_path / "maps.npy", maps)
    np.save(tmp_path / "told.npy", asked * np.asarray([[[1], [-1], [2], [0]]], np.float32))
    told = ("run", pixels.path, "--latents", tmp_path / "maps.npy")
    told = (*told, "--condition", f"told={tmp_path / 'told.npy'}")
    assert call(*told, "-o", tmp_path / "x.npy").exit_code == 0
    assert call(*told, "-o", tmp_path / "x.png").exit_code == 0
    with Image.open(tmp_path / "x.png") as image:
        (expected,) = np.load(tmp_path / "x.npy")
        assert image.mode == "P"
        np.testing.assert_array_equal(np.asarray(image), expected)
        shown: Any = np.asarray(image.convert("RGB"))
    assert len(np.unique(shown.reshape(-1, 3), axis=0)) == len(np.unique(expected)) > 1


def test_it_is_inspected_and_measured(bundle: Bundle, tmp_path: Path) -> None:
    shown = call("inspect", bundle.path).stdout
    assert "query-decoder" in shown
    assert "5 classes of every voxel by 10 queries" in shown
    assert "fold-stored" in shown
    out = tmp_path / "figures.json"
    assert call("bench", bundle.path, "--threads", "1", "--json", out).exit_code == 0
    text = out.read_text(encoding="utf-8")
    assert '"output": [1, 6, 4, 8]' in " ".join(text.split()).replace("[ ", "[").replace(" ]", "]")
