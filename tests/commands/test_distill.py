"""`graftline distill one-step`: a loop in, a graph that optimize takes out, and what it refuses."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from graftline.bundle.reader import Bundle
from graftline.commands.distilling import Command
from graftline.commands.teaching import parts_of
from graftline.errors import GraftlineError
from graftline.models.cache import fingerprint
from graftline.models.spec import read_spec
from graftline.models.training import distil, one_step, pairs
from graftline.models.training.distil import Distilled, distill
from graftline.models.training.operators import OPERATORS
from graftline.runtimes.one_pass.engine import load_decoder
from graftline.sampling.schedule import trajectory
from graftline.sampling.spec import Sampling
from tests.commands.calling import call, refused
from tests.kinds.samplers import DENOISER, TWO_HEADS, built, write_sampler
from tests.models.training.predictable import Stops

SPEC = """
[sampling]
prediction = "flow"
scheduler = "flow-match"
steps = 4

[decoder]
graph = "decoder.onnx"
scale = 0.5
"""
SMALL: dict[str, Any] = {
    "size": "8x8", "steps": 40, "pairs": 96, "batch": 16, "learning_rate": 1e-2,
}  # fmt: skip


def silent(line: str) -> None:
    """Nobody reads."""


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A denoiser, its spec, texts and a cache that keeps the teacher."""
    folder = tmp_path_factory.mktemp("distill")
    write_sampler(folder, spec=SPEC)
    texts = np.random.default_rng(0).standard_normal((24, 3, 6))
    np.save(folder / "text.npy", texts)
    return folder


@pytest.fixture(autouse=True)
def _cache(monkeypatch: pytest.MonkeyPatch, files: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(files / "cache"))


def command(files: Path, out: Path, **more: Any) -> Command:
    options = {"spec": files / "spec.toml", "condition": (f"text={files / 'text.npy'}",), **SMALL}
    return Command("one-step", str(files / "denoiser.onnx"), out, **(options | more))


def made(given: Command, say: Any = silent) -> Distilled:
    return distill(given.job(say), say)


def graph(out: Path) -> bytes:
    return (out / "student.onnx").read_bytes()


def test_a_student_is_nearer_than_one_step_of_its_teacher_and_optimize_takes_it(
    files: Path, tmp_path: Path
) -> None:
    out = tmp_path / "student"
    words = [w for k, v in SMALL.items() for w in (f"--{k.replace('_', '-')}", str(v))]
    told = call(
        "distill", "one-step", files / "denoiser.onnx", "--spec", files / "spec.toml",
        "--condition", f"text={files / 'text.npy'}", "-o", out, *words, "--json",
    )  # fmt: skip
    assert told.exit_code == 0, told.output
    assert "training: step 40 of 40" in told.stderr
    said = json.loads(told.stdout)
    assert said["held_out"]["psnr"] > said["naive"]["psnr"] + 3
    assert (said["pairs"], said["steps"], said["ended"]) == (96, 40, "all steps")
    spec = read_spec(out / "spec.toml")
    assert spec.inputs.conditions == ("text",)
    assert spec.decoder is not None
    assert spec.decoder.scale == 0.5
    assert spec.sampling is not None
    assert (spec.sampling.steps, spec.sampling.guidance) == (1, 1.0)
    done = call("optimize", out / "student.onnx", "--spec", out / "spec.toml", "-o",
                tmp_path / "one.graft", "--passes", "collapse-loop | join", "-q")  # fmt: skip
    assert done.exit_code == 0, done.output
    host, student = (ir.load(f) for f in (files / "denoiser.onnx", out / "student.onnx"))
    assert [n.op_type for n in student.graph if n.op_type == "Conv"] == ["Conv"] * 2
    assert student.graph.inputs[0].name == host.graph.inputs[0].name
    card = (out / "README.md").read_text()
    for words in ("96 pairs", "| seed | 0 |", "4 steps of flow-match", "the teacher's own weights"):
        assert words in card


def test_an_engine_of_the_student_makes_what_was_measured(files: Path, tmp_path: Path) -> None:
    """The held-out error of the training is that of both bundles, side by side."""
    found = made(command(files, tmp_path / "student"))
    one = call("optimize", found.out / "student.onnx", "--spec", found.out / "spec.toml", "-o",
               tmp_path / "one.graft", "--passes", "collapse-loop", "-q")  # fmt: skip
    assert one.exit_code == 0, one.output
    (loop,) = (files / "cache" / "graftline" / "training" / "teachers").glob("*.graft")
    teacher, student = load_decoder(loop), load_decoder(tmp_path / "one.graft")
    noise = np.random.default_rng([0, 0]).standard_normal((96, 4, 8, 8)).astype(np.float32)
    rows = np.arange(96) % 24
    texts = np.load(files / "text.npy")[rows].astype(np.float32)
    drawn = teacher.decode(noise, text=texts)
    held = rows == 23
    error = np.square(student.decode(noise, text=texts) - drawn)[held].mean()
    learned = drawn[~held]
    psnr = 10 * np.log10((learned.max() - learned.min()) ** 2 / error)
    assert found.found is not None
    assert found.found.psnr == pytest.approx(psnr, abs=0.01)


def test_a_bundle_teaches_as_its_graph_does(files: Path, tmp_path: Path) -> None:
    bundle = tmp_path / "loop.graft"
    done = call("optimize", files / "denoiser.onnx", "--spec", files / "spec.toml", "-o", bundle,
                "--passes", "collapse-loop", "-q")  # fmt: skip
    assert done.exit_code == 0, done.output
    given = command(files, tmp_path / "a", steps=6)
    made(given)
    own = Command(**{**vars(given), "checkpoint": str(bundle), "spec": None, "out": tmp_path / "b"})
    made(own)
    assert graph(tmp_path / "a") == graph(tmp_path / "b")
    assert Bundle.open(bundle).manifest, "the bundle is as it was"


def test_interrupted_and_gone_on_with_is_uninterrupted(
    files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pairs, "SHARD", 32)
    looks = made(command(files, tmp_path / "whole", seed=5)).course.looks
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    parts = command(files, tmp_path / "parts", seed=5)
    with pytest.raises(KeyboardInterrupt, match="the samples drawn so far are kept"):
        made(parts, Stops("drawing", 2))
    assert not parts.out.exists()
    for place in (1, 3):
        with pytest.raises(KeyboardInterrupt, match="parts is the student as of step"):
            made(parts, Stops("training: step", place))
        assert graph(parts.out), "a student that can be used"
    assert made(parts).course.looks == looks
    assert graph(parts.out) == graph(tmp_path / "whole")
    made(command(files, tmp_path / "other", seed=6))
    assert graph(parts.out) != graph(tmp_path / "other")


def test_ctrl_c_within_a_step_waits_for_its_end(
    files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ctrl_c: None
) -> None:
    real, seen = one_step.OneStepLesson.loss, list[int]()

    def stopped(self: Any, *given: Any) -> Any:
        seen.append(1)
        if len(seen) == 3:
            signal.raise_signal(signal.SIGINT)
        return real(self, *given)

    monkeypatch.setattr(one_step.OneStepLesson, "loss", stopped)
    with pytest.raises(KeyboardInterrupt, match="as of step 3; run the same command to go on"):
        made(command(files, tmp_path / "student", seed=7))


def test_the_time_bounds_samples_and_steps(
    files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A clock of which every look takes a quarter of a second."""
    monkeypatch.setattr(pairs, "SHARD", 8)
    now = [0.0]

    def tick() -> float:
        now[0] += 0.25
        return now[0]

    job = command(files, tmp_path / "timed", minutes=0.4, steps=None, pairs=512).job(silent)
    monkeypatch.setattr("graftline.models.training.clock.time.monotonic", tick)
    found = distil.distill(job, silent)
    assert 8 <= found.pairs < 512
    assert 1 < found.course.step < 96
    assert found.minutes < 0.5


def test_the_loss_asks_for_the_teachers_structure(files: Path, tmp_path: Path) -> None:
    """`perceptual` 0 is the squared error alone, and gives another student."""
    plain = made(command(files, tmp_path / "plain", perceptual=0.0, steps=6))
    made(command(files, tmp_path / "both", perceptual=2.0, steps=6))
    assert plain.found is not None
    assert plain.found.ssim is None
    assert graph(tmp_path / "plain") != graph(tmp_path / "both")


def test_what_is_clipped_in_the_engine_is_clipped_where_it_is_measured(
    files: Path, tmp_path: Path
) -> None:
    spec = tmp_path / "spec.toml"
    spec.write_text(
        '[sampling]\nprediction = "v"\nscheduler = "ddim"\nsteps = 3\n'
        'spacing = "trailing"\nclip = 0.5\nfinal = "first"\n'
    )
    found = made(command(files, tmp_path / "out", spec=spec, perceptual=0.0))
    assert found.found is not None
    assert found.found.psnr > found.naive.psnr + 3
    said = read_spec(found.out / "spec.toml").sampling
    assert said is not None
    assert (said.prediction, said.clip, said.spacing) == ("v", 0.5, "trailing")


def test_a_student_of_a_teacher_of_noise_predicts_v() -> None:
    for kind in ("epsilon", "v", "x0"):
        teacher = Sampling(kind, "euler", 8, spacing="linspace", guidance=5.0)
        student = one_step.student_sampling(teacher)
        assert student.prediction == ("v" if kind == "epsilon" else kind)
        assert (student.steps, student.guidance, student.train_steps) == (1, 1.0, 1000)
        (moment,) = trajectory(student).moments
        assert moment.time == 999, "where the sample is all noise"


def test_a_graph_that_is_another_in_torch_is_refused(
    files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As if an operator were written wrong."""
    monkeypatch.setitem(OPERATORS, "Tanh", OPERATORS["Sin"])
    with pytest.raises(GraftlineError, match="something else in torch than in ONNX Runtime"):
        made(command(files, tmp_path / "out"))


def test_another_thing_at_out_is_left_alone(files: Path, tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(GraftlineError, match="holds something else than a student of this command"):
        made(command(files, tmp_path))


@pytest.mark.parametrize(
    ("sampling", "message"),
    [
        ('prediction = "epsilon"\nscheduler = "euler-ancestral"\nsteps = 4',
         "sampling.scheduler euler-ancestral is stochastic (adds new noise)"),
        ('prediction = "epsilon"\nscheduler = "ddim"\neta = 0.5\nsteps = 4',
         "sampling.scheduler ddim is stochastic (sampling.eta is 0.5)"),
        ('prediction = "v"\nscheduler = "ddim"\nspacing = "trailing"\nsteps = 1',
         "sampling.steps is 1; give the teacher's own number"),
        ('prediction = "flow"\nscheduler = "pyramid"\nscales = 2\nsteps = 4',
         "the teacher is sampled over 2 scales, and a student in one step has one"),
    ],
)  # fmt: skip
def test_loops_without_a_sample_of_a_noise_are_refused(
    files: Path, tmp_path: Path, sampling: str, message: str
) -> None:
    spec = tmp_path / "spec.toml"
    spec.write_text(f"[sampling]\n{sampling}\n")
    line = refused("distill", "one-step", files / "denoiser.onnx", "--spec", spec, "--condition",
                   f"text={files / 'text.npy'}", "--size", "8x8", "-o", tmp_path / "out",
                   "-q")  # fmt: skip
    assert message in line
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("h3 = Tanh (h2)", "h3 = Celu (h2)", "no gradients here through Celu"),
        ("[B,", "[2,", "takes batches of 2 alone; export it with a free"),
    ],
)
def test_graphs_that_cannot_learn_are_refused_by_name(
    files: Path, tmp_path: Path, old: str, new: str, message: str
) -> None:
    ir.save(built(DENOISER.replace(old, new)), tmp_path / "denoiser.onnx")
    (tmp_path / "spec.toml").write_text(SPEC.partition("[decoder]")[0])
    line = refused("distill", "one-step", tmp_path / "denoiser.onnx", "--spec",
                   tmp_path / "spec.toml", "--condition", f"text={files / 'text.npy'}", "--size",
                   "8x8", "-o", tmp_path / "out", "-q")  # fmt: skip
    assert message in line


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["two-step"], "KIND two-step: unknown; did you mean 'one-step'?"),
        (["one-step", "--steps", "0"], "--steps 0: use a number above 0"),
        (["one-step", "--perceptual", "-1"], "--perceptual -1.0: use 0 or a number above"),
        (["one-step", "--optimizer", "sgd"], "--optimizer sgd: unknown"),
        (["one-step", "--threads", "999"], "--threads 999: this machine has"),
        (["one-step", "--size", "8"], "--size 8: use HEIGHTxWIDTH, as 32x32"),
        (["one-step", "NOSIZE"], "say its height and width with --size HxW"),
        (["one-step", "--condition", "txt=TEXT"], "no condition 'txt'; did you mean 'text'?"),
        (["one-step", "NOTEXT"], "the condition 'condition_0' [B, 3, 6] float32 is missing"),
        (["one-step", "NOSPEC"], "how it is sampled is not known; say it with --spec FILE"),
        (["one-step", "--size", "2x2"], "samples of [2, 2] are too small for SSIM; give --percep"),
    ],
)
def test_what_cannot_be_asked_for_is_one_line(
    files: Path, tmp_path: Path, options: list[str], message: str
) -> None:
    kind, *more = [o.replace("TEXT", str(files / "text.npy")) if "=" in o else o for o in options]
    usual = {
        "NOSIZE": ["--size", "8x8"], "NOSPEC": ["--spec", str(files / "spec.toml")],
        "NOTEXT": ["--condition", f"text={files / 'text.npy'}"],
    }  # fmt: skip
    words = [w for name, given in usual.items() if name not in more for w in given]
    line = refused(
        "distill", kind, files / "denoiser.onnx", *words, "--pairs", "4", "-o", tmp_path / "out",
        "-q", *(w for w in more if w not in usual),
    )  # fmt: skip
    assert message in line
    assert not (tmp_path / "out").exists()


def test_a_bundle_that_is_no_loop_is_refused(files: Path, tmp_path: Path) -> None:
    for passes, message in (
        ("fold-time{t=500}", "is not a sampling loop; build it with --passes collapse-loop"),
        ("collapse-loop | join", "gives images, not the samples that a student learns"),
    ):
        bundle = tmp_path / f"{len(passes)}.graft"
        done = call("optimize", files / "denoiser.onnx", "--spec", files / "spec.toml", "-o",
                    bundle, "--passes", passes, "-q")  # fmt: skip
        assert done.exit_code == 0, done.output
        line = refused("distill", "one-step", bundle, "-o", tmp_path / "out", "-q")
        assert message in line


def test_a_teacher_is_another_where_its_scheduler_is(tmp_path: Path) -> None:
    folder, weights = tmp_path / "pipeline", tmp_path / "weights"
    (folder / "scheduler").mkdir(parents=True)
    weights.write_bytes(b"numbers")
    config = folder / "scheduler" / "scheduler_config.json"
    config.write_text('{"timestep_spacing": "leading"}')
    before = fingerprint(parts_of(str(folder), [weights], None))
    assert fingerprint(parts_of(str(folder), [weights], None)) == before
    config.write_text('{"timestep_spacing": "trailing"}')
    assert fingerprint(parts_of(str(folder), [weights], None)) != before


def test_a_teacher_of_two_branches_is_taught_with_its_guidance(files: Path, tmp_path: Path) -> None:
    """The student takes the condition alone; the guided samples are what it learns."""
    spec = tmp_path / "spec.toml"
    spec.write_text(SPEC.partition("[decoder]")[0] + "guidance = 3.0\n")
    np.save(tmp_path / "none.npy", np.zeros((24, 3, 6)))
    both = (f"text={files / 'text.npy'}", f"unconditional_0={tmp_path / 'none.npy'}")
    found = made(command(files, tmp_path / "out", spec=spec, condition=both))
    assert found.found is not None
    assert found.found.psnr > found.naive.psnr + 3
    assert [v.name for v in ir.load(found.out / "student.onnx").graph.inputs] == ["x", "t", "text"]


def test_outputs_beside_the_prediction_are_refused_before_anything_is_drawn(
    files: Path, tmp_path: Path
) -> None:
    ir.save(built(TWO_HEADS), tmp_path / "denoiser.onnx")
    (tmp_path / "spec.toml").write_text(
        SPEC.partition("[decoder]")[0] + '\n[outputs]\nprediction = "noise"\n'
    )
    line = refused("distill", "one-step", tmp_path / "denoiser.onnx", "--spec",
                   tmp_path / "spec.toml", "--size", "8x8", "-o", tmp_path / "out",
                   "-q")  # fmt: skip
    assert "would be of every step; put prune-branch before" in line
