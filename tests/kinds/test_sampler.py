"""Samplers end to end: a spec, a bundle of several numbers of steps, `decode`, check, recipes."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from typer.testing import CliRunner

from graftline.build.check import check
from graftline.build.optimize import optimize
from graftline.bundle.reader import Bundle
from graftline.bundle.store import load_graph
from graftline.commands.cli import app
from graftline.errors import CheckpointError, GraftlineError, LawBroken, RequestError
from graftline.kinds.denoiser import Denoiser
from graftline.kinds.kind import Parts
from graftline.models.spec import read_spec
from graftline.recipe import recipes
from graftline.runtimes.one_pass.engine import load_decoder
from graftline.tensors import origin
from tests.kinds.chunks import CHUNKED, CHUNKS
from tests.kinds.samplers import (
    DENOISER,
    PYRAMID,
    SAMPLING,
    TWO_HEADS,
    WHOLE,
    write_sampler,
)
from tests.kinds.unet import UNET

PASSES = "fold-guidance | collapse-loop | join"


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return write_sampler(tmp_path_factory.mktemp("sampler"))


@pytest.fixture(scope="module")
def bundle(files: tuple[Path, Path]) -> Bundle:
    graph, spec = files
    out = graph.parent / "sampler.graft"
    return optimize(graph, out, passes=PASSES, spec=spec, steps=(1, 2, 4))


def drawn(steps: int | None, bundle: Bundle) -> np.ndarray:
    engine = load_decoder(bundle.path)
    random = np.random.default_rng(0)
    noise, text, none = (
        random.standard_normal(s).astype(np.float32) for s in ((2, 4, 8, 8), (2, 3, 6), (2, 3, 6))
    )
    return engine.decode(noise, steps=steps, text=text, unconditional_0=none)


def test_every_number_of_steps_is_held_to_the_published_loop(bundle: Bundle) -> None:
    rows = {(w.graft.partition("{")[0], w.law): w.status for w in bundle.manifest.laws}
    held = [
        ("ort-cpu", "whole"), ("steps-2", "form"), ("steps-4", "form"), ("export", "checkpoint"),
        ("fold-guidance", "neutral"), ("collapse-loop", "neutral"), ("join", "neutral"),
    ]  # fmt: skip
    assert {rows[row] for row in held} == {"held"}


def test_steps_are_forms_over_one_store(bundle: Bundle) -> None:
    loops = [n for n, s in bundle.manifest.stages.items() if s.role in ("engine", "form")]
    assert loops == ["ort-cpu", "steps-2", "steps-4"]
    places = [
        origin(load_graph(bundle.graph(name)).graph.initializers["enter"].const_value)  # type: ignore[arg-type]
        for name in loops
    ]
    assert len(set(places)) == 1


def test_decode_draws_with_the_steps_asked_for(bundle: Bundle) -> None:
    one, two, four = (drawn(steps, bundle) for steps in (1, 2, 4))
    assert one.shape == (2, 3, 16, 16)
    np.testing.assert_array_equal(drawn(None, bundle), one)
    assert np.abs(one - two).max() > 1e-3
    assert np.abs(two - four).max() > 1e-3
    with pytest.raises(RequestError, match=r"steps=3: .* holds 1, 2, 4; build with --steps"):
        drawn(3, bundle)


def test_the_command_line_draws(bundle: Bundle, tmp_path: Path) -> None:
    words = ["run", str(bundle.path), "--steps", "2", "-o", str(tmp_path / "made.npy")]
    for name, shape in (
        ("noise", (1, 4, 8, 8)),
        ("text", (1, 3, 6)),
        ("unconditional_0", (1, 3, 6)),
    ):
        np.save(tmp_path / f"{name}.npy", np.ones(shape, np.float32))
        given = str(tmp_path / f"{name}.npy")
        words += ["--latents", given] if name == "noise" else ["--condition", f"{name}={given}"]
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 0, result.output
    assert np.load(tmp_path / "made.npy").shape == (1, 3, 16, 16)
    shown = CliRunner().invoke(app, ["inspect", str(bundle.path)])
    said = " ".join(shown.output.split())
    assert "drawn in one step of ddim from epsilon" in said
    assert "stage steps-4 the same weights: samples in 4 channels, drawn in 4 steps" in said


def test_check_holds(bundle: Bundle) -> None:
    report = check(bundle.path)
    assert report.holds, [f for f in report.findings if not f.holds]


def test_the_proof_sees_a_loop_of_another_schedule(
    bundle: Bundle, files: tuple[Path, Path], tmp_path: Path
) -> None:
    copy = Path(shutil.copytree(bundle.path, tmp_path / "copy"))
    wrong = ir.load(copy / "steps-2.onnx")
    name = next(n for n in wrong.graph.initializers if n.startswith("factor."))
    held = wrong.graph.initializers[name]
    assert held.const_value is not None
    held.const_value = ir.tensor(held.const_value.numpy() * np.float32(1.01), name=name)
    ir.save(wrong, copy / "steps-2.onnx")
    parts = Parts(copy, bundle.manifest.stages, "ort-cpu", "ort-cpu")
    with pytest.raises(LawBroken, match="steps-2 breaks the law"):
        Denoiser().prove_forms(parts, lambda line: None)


@pytest.mark.parametrize("name", [one.name for one in recipes("denoiser")])
def test_recipes_run_on_a_host_of_their_shape(name: str, tmp_path: Path) -> None:
    text, spec = DENOISER, WHOLE
    if name == "adcsr":
        text, spec = TWO_HEADS, f'{WHOLE}\n[outputs]\nprediction = "noise"\n'
    if name == "faster-diffusion":
        text = UNET
    if name == "dd1":
        text, spec = DENOISER.replace("H,W", "8,8"), WHOLE.replace(SAMPLING, TOKENS)
    if name == "dd2":
        text = TWO_HEADS.replace("H,W", "8,8")
        spec = WHOLE.replace(SAMPLING, TOKENS.replace("steps = 2", "steps = 1"))
        spec += '\n[outputs]\nprediction = "noise"\n'
    if name == "multi-scale":
        spec = PYRAMID
    if name == "music2latent2":
        text, spec = CHUNKED, CHUNKS
    if name in ("ssdd", "epsilon-vae"):
        text, spec = PIXELS, f'{SAMPLING}\n[inputs]\nsample = "x"\nconditions = ["z"]\n'
    graph, told = write_sampler(tmp_path, text, spec)
    made = optimize(graph, tmp_path / "out.graft", recipe=name, spec=told)
    assert made.manifest.recipe == name
    assert {w.status for w in made.manifest.laws if w.law in ("whole", "neutral")} == {"held"}
    engine = load_decoder(made.path)
    shape = [d if isinstance(d, int) else 8 for d in engine.main.shape]
    given = {"text": np.ones((8, 3, 6), np.float32)}
    if text is CHUNKED:
        shape, given = [8, 8, 6], {}
    if text is PIXELS:
        given = {"z": np.ones((8, 4, 4, 4), np.float32)}
    if name == "vq-residual":
        given |= {"residual": np.ones(shape, np.float32), "strength": np.ones(8, np.float32)}
    made_of = engine.decode(np.ones(shape, np.float32), **given)
    undecoded = text is UNET or name == "multi-scale"
    channels = 2 if text is CHUNKED else 4 if undecoded else 3
    assert made_of.shape[:2] == (8, channels)


TOKENS = """
[sampling]
prediction = "x0"
scheduler = "prefix"
steps = 2
train_steps = 64
"""
"""Of a generator of 64 tokens."""
PIXELS = """
<ir_version: 10, opset_import: ["" : 20]>
pixels (float[B,3,8,8] x, float[B] t, float[B,4,4,4] z, float[8,3,3,3] enter, float[8,4,1,1] told,
        float[1,8] rate, float[3,8,3,3] leave) => (float[B,3,8,8] noise)
{
  first = Constant <value_ints = [1]> ()
  places = Constant <value_ints = [2, 3]> ()
  sizes = Constant <value_floats = [1.0, 1.0, 2.0, 2.0]> ()
  column = Unsqueeze (t, first)
  waves = MatMul (column, rate)
  sine = Sin (waves)
  scale = Unsqueeze (sine, places)
  latents = Conv (z, told)
  large = Resize <mode = "nearest"> (latents, , sizes)
  h0 = Conv <pads = [1, 1, 1, 1]> (x, enter)
  h1 = Add (h0, large)
  h2 = Mul (h1, scale)
  h3 = Tanh (h2)
  noise = Conv <pads = [1, 1, 1, 1]> (h3, leave)
}
"""
"""A decoder of latents that denoises pixels."""


def test_reused_features_are_measured_and_recorded(tmp_path: Path) -> None:
    graph, told = write_sampler(tmp_path, UNET, WHOLE)
    passes = "fold-guidance | encoder-reuse{keys=0+2} | join"
    made = optimize(graph, tmp_path / "out.graft", passes=passes, spec=told)
    rows = {w.law: w for w in made.manifest.laws}
    assert rows["whole"].status == "held"
    assert rows["reuse"].status == "measured"
    assert rows["reuse"].value is not None
    assert 1e-4 < rows["reuse"].value < 1
    assert "4 steps of ddim from epsilon, guidance 3, its encoder run in 2 of" in (
        made.manifest.facts.told()
    )
    assert check(made.path).holds
    steps = optimize(
        graph, tmp_path / "all.graft", passes="encoder-reuse{keys=0}", spec=told, steps=(1, 4)
    )
    rows = {w.graft: w for w in steps.manifest.laws if w.law in ("form", "reuse")}
    assert rows["steps-4"].status == "held"
    assert rows["ort-cpu"].value == pytest.approx(0, abs=1e-6)  # its one step is a key step


def test_weights_that_a_bundle_has_linked_are_read_again(tmp_path: Path) -> None:
    graph, _ = write_sampler(tmp_path)
    data = {"external_data": "denoiser.data", "size_threshold_bytes": 64}
    ir.save(ir.load(graph), graph, **data)  # type: ignore[arg-type]
    for name in ("one", "two"):
        optimize(graph, tmp_path / f"{name}.graft", passes="fold-time{t=5}")
    assert (tmp_path / "denoiser.data").stat().st_nlink > 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"recipe": "suffix"}, "--recipe is for decoders; the checkpoint is a denoiser"),
        ({"passes": "fold-time", "steps": (1, 2)}, "--steps needs a loop in the graph"),
        ({"passes": "collapse-loop", "steps": (2, 2)}, "--steps names 2 twice"),
        ({"passes": "collapse-loop", "steps": (5000,)}, "sampling.steps is 5000"),
    ],
)
def test_refused_options(
    files: tuple[Path, Path], tmp_path: Path, options: dict[str, object], message: str
) -> None:
    with pytest.raises(GraftlineError, match=message):
        optimize(files[0], tmp_path / "x.graft", spec=files[1], **options)  # type: ignore[arg-type]
    assert not (tmp_path / "x.graft").exists()


def test_a_decoder_of_text_takes_no_spec(
    files: tuple[Path, Path], tiny_checkpoint: Path, tmp_path: Path
) -> None:
    with pytest.raises(GraftlineError, match="--steps is for denoisers; the checkpoint is a decod"):
        optimize(tiny_checkpoint, tmp_path / "x.graft", steps=(1,))
    with pytest.raises(GraftlineError, match="recipe sodec is for a denoiser; the checkpoint is a"):
        optimize(tiny_checkpoint, tmp_path / "x.graft", recipe="sodec")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[sampling", "spec.toml: "),
        (SAMPLING.replace("ddim", "dpm-solver"),
         'sampling.scheduler is "dpm-solver", not one of consistency, ddim, ddpm'),
        (SAMPLING + "etta = 0.5", "unknown fields etta in sampling; did you mean 'eta'"),
        (SAMPLING.replace("steps = 4", 'steps = "4"'), 'sampling.steps is "4", not a whole number'),
        (SAMPLING.replace("ddim", "prefix"), "sampling.prediction is epsilon; it must be 'x0'"),
        (SAMPLING.replace("steps = 4", "steps = 0"), "sampling.steps is 0; it must be"),
        ("[decoder]\ngraph = 'x.onnx'", "decoder.graph: no such file"),
        ("[decoder]\ngraph = 'decoder.onnx'\nscale = 0.0", "decoder.scale is 0"),
    ],
)  # fmt: skip
def test_a_wrong_spec_is_refused_by_its_field(tmp_path: Path, text: str, message: str) -> None:
    _, spec = write_sampler(tmp_path, spec=text)
    with pytest.raises(CheckpointError, match=message):
        read_spec(spec)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ('[inputs]\nsample = "xx"', "inputs.sample of the spec is 'xx'; did you mean 'x'|known"),
        ('[inputs]\ntimestep = "text"', "the time step has two dimensions or more"),
        ('[outputs]\nprediction = "noisy"', "prediction of the spec is 'noisy'; did you mean"),
        ("[decoder]\ngraph = 'decoder.onnx'\nlatents = 'y'", "decoder.latents of the spec is 'y'"),
    ],
)
def test_a_spec_that_names_what_is_not_there(tmp_path: Path, more: str, message: str) -> None:
    graph, spec = write_sampler(tmp_path, spec=f"{SAMPLING}\n{more}")
    with pytest.raises(GraftlineError, match=message):
        optimize(graph, tmp_path / "x.graft", passes="collapse-loop | join", spec=spec)


def test_inputs_that_types_do_not_tell_are_declared(tmp_path: Path) -> None:
    label = DENOISER.replace("float[B,3,6] text", "int64[B] label, float[9,3,6] table").replace(
        "  first = C", "  text = Gather (table, label)\n  first = C"
    )
    graph, spec = write_sampler(tmp_path, label, SAMPLING)
    with pytest.raises(GraftlineError, match="2 inputs of one number, or one per sample"):
        optimize(graph, tmp_path / "x.graft", spec=spec)
    spec.write_text(f'{SAMPLING}\n[inputs]\nconditions = ["label"]\n', encoding="utf-8")
    made = optimize(graph, tmp_path / "x.graft", passes="collapse-loop", spec=spec)
    assert [p.name for p in made.manifest.main.ports if p.direction == "in"] == [
        "condition.0", "noise"
    ]  # fmt: skip
    assert check(made.path).holds
