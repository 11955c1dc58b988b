"""A masked generator goes the way of every other host, and its canvases are filled."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

from graftline import load_decoder, optimize
from graftline.build.check import check
from graftline.bundle.reader import Bundle
from graftline.errors import GraftlineError, RequestError
from graftline.facts import CanvasFacts
from graftline.filling import Filling
from graftline.kinds.canvas import Canvas
from graftline.passes.anchors.canvas.find import find_canvas
from graftline.passes.anchors.roles import OnePass
from graftline.passes.graph.mismatch import Mismatch
from graftline.ports import Port
from graftline.runtimes.one_pass.engine import DecodeEngine
from graftline.runtimes.one_pass.fill import Filler
from graftline.runtimes.one_pass.guided import check_guidance
from tests.commands.calling import call, refused
from tests.kinds.canvases import BARE, maskgit
from tests.kinds.latent_decoders import UPSCALER, model_of, write

N = 32
FEW = Filling.of(6)
WIDE = BARE.replace("float[4,4] table", "float[9,4] table")
"""Several ids are read and not scored."""
LABELS = np.asarray([0, 2])


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    folder = tmp_path_factory.mktemp("canvas")
    host = write(maskgit(positions=N), folder / "host.onnx")
    return optimize(host, folder / "host.graft", recipe="recap")


@pytest.fixture(scope="module")
def engine(bundle: Bundle) -> DecodeEngine:
    return load_decoder(bundle.path)


@pytest.mark.parametrize(
    ("text", "facts", "roles"),
    [(maskgit(), CanvasFacts(5, 6, 5, FEW), ["canvas", "condition"]),
     (BARE, CanvasFacts(3, 6, 3, FEW), ["canvas"]),
     (WIDE, CanvasFacts(3, 6, filling=FEW), ["canvas"])],
)  # fmt: skip
def test_it_is_known_by_its_ends(text: str, facts: CanvasFacts, roles: list[str]) -> None:
    found = find_canvas(model_of(text).graph)
    assert isinstance(found, OnePass)
    assert found.facts == facts, "the id behind those that are scored is the mask, if it is one"
    assert [role.role for role in found.inputs] == roles


@pytest.mark.parametrize(
    ("was", "now", "message"),
    [
        ("int64[B,6]", "int64[B,N]", "not one canvas of tokens .B, N. of a fixed length"),
        ("float[B,6,3] logits", "float[B,5,3] logits", "not every position .* is scored"),
        ("Gather (table, ids)", "OneHot (ids, table, places)", "not looked up in one"),
        ("Softmax <axis = -1> (products)", "Relu (products)", "or there is none that hides none"),
        ("  shares = Softmax <axis = -1> (products)",
         "  seen = Add (products, table)\n  shares = Softmax <axis = -1> (seen)", "hides pos"),
        ("  shares = Softmax <axis = -1> (products)",
         "  shares = Attention <is_causal = 1> (y, y, y)", "hides positions"),
    ],
)  # fmt: skip
def test_other_graphs_are_none(was: str, now: str, message: str) -> None:
    found = find_canvas(model_of(BARE.replace(was, now)).graph)
    assert isinstance(found, Mismatch)
    import re

    assert re.search(message, found.reason)


def test_the_bundle_holds_to_its_laws(bundle: Bundle) -> None:
    laws = {(w.graft.partition("{")[0], w.law): w.status for w in bundle.manifest.laws}
    owed = [("canonicalize-one-pass", "neutral"), ("canvas-cache", "neutral"),
            ("canvas-cache", "kept-features"), ("export", "checkpoint"), ("ort-cpu", "whole"),
            ("ort-cpu", "light")]  # fmt: skip
    assert {laws[row] for row in owed} == {"held"}
    assert laws["ort-cpu", "reuse"] == "measured"
    assert check(bundle.path).holds
    shown = call("inspect", bundle.path).output
    assert "a canvas of 32 positions of 5 tokens, filled in 16 steps" in shown


def test_it_is_filled_as_the_file_scores_it(
    bundle: Bundle, engine: DecodeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without light steps by the unmodified file in ONNX Runtime; light ones save rows."""
    session = onnxruntime.InferenceSession(str(bundle.path.parent / "host.onnx"))

    def step(tokens: Any, at: Any, kept: Any) -> tuple[Any, Any]:
        assert at.shape == (2, N)
        return session.run(None, {"ids": tokens, "label": LABELS})[0], {}

    filler = Filler(step, Filling(steps=6), 5, np.random.default_rng(3))
    expected = filler.fill(np.full((2, N), 5))
    made = engine.fill(2, label=LABELS, seed=3, steps=6, light=0)
    np.testing.assert_array_equal(made, expected)
    assert ((made >= 0) & (made < 5)).all()
    runs, real = list[int](), engine._asked

    def asked(feed: dict[str, Any], names: Any) -> Any:
        runs.append(feed["canvas"].shape[1])
        return real(feed, names)

    monkeypatch.setattr(engine, "_asked", asked)
    engine.fill(2, label=LABELS, steps=6, full=2)
    groups = Filling(steps=6, full=2, light=1).groups(N)
    assert runs == [n for g in groups for n in (N, *[sum(g)] * (len(g) - 1))]
    assert sum(runs) < 6 * N


def test_guided_it_is_filled_as_the_file_scores_both_branches(
    bundle: Bundle, engine: DecodeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By two calls of the unmodified file in each step; the engine makes one, of both."""
    session = onnxruntime.InferenceSession(str(bundle.path.parent / "host.onnx"))
    none = np.asarray([1, 1])

    def step(tokens: Any, at: Any, kept: Any) -> tuple[Any, Any]:
        halves = zip(np.split(tokens, 2), (LABELS, none), strict=True)
        return np.concatenate([session.run(None, {"ids": t, "label": c})[0] for t, c in halves]), {}

    filler = Filler(step, Filling(steps=6, guidance=4.0), 5, np.random.default_rng(3))
    expected = filler.fill(np.full((2, N), 5))
    runs, real = list[tuple[int, int]](), engine._asked

    def asked(feed: dict[str, Any], names: Any) -> Any:
        runs.append(feed["canvas"].shape)
        return real(feed, names)

    monkeypatch.setattr(engine, "_asked", asked)
    told: dict[str, Any] = {"label": LABELS, "seed": 3, "steps": 6, "guidance": 4.0}
    for name in ("unconditional_label", "unconditional_0", "unconditional_condition_0"):
        runs.clear()
        made = engine.fill(2, light=0, **{name: none}, **told)
        np.testing.assert_array_equal(made, expected)
        assert runs == [(4, N)] * 6
    assert (engine.fill(2, label=LABELS, seed=3, steps=6, light=0) != expected).any()
    runs.clear()
    engine.fill(2, unconditional_0=none, full=2, **told)
    groups = Filling(steps=6, full=2, light=1).groups(N)
    assert runs == [(4, n) for g in groups for n in (N, *[sum(g)] * (len(g) - 1))]


def test_guidance_on_the_command_line(
    bundle: Bundle, engine: DecodeEngine, tmp_path: Path
) -> None:
    none, out = np.asarray([1, 1]), tmp_path / "tokens.npy"
    canvas = np.full((2, N), 5)
    for name, array in (("canvas", canvas), ("label", LABELS), ("none", none)):
        np.save(tmp_path / f"{name}.npy", array)
    run = ["run", bundle.path, "--latents", tmp_path / "canvas.npy", "--seed", "3", "--steps", "6",
           "--condition", f"label={tmp_path / 'label.npy'}", "-o", out]  # fmt: skip
    both = [*run, "--condition", f"unconditional_label={tmp_path / 'none.npy'}", "--guidance", "4"]
    for rises in (False, True):
        result = call(*both, *(["--rises"] if rises else []))
        assert result.exit_code == 0, result.output
        np.testing.assert_array_equal(np.load(out), engine.fill(
            canvas, label=LABELS, unconditional_label=none, seed=3, steps=6, guidance=4.0,
            rises=rises,
        ))  # fmt: skip
    assert "--rises grows to a guidance; add --guidance" in refused(*run, "--rises")
    assert "guidance=4 needs what stands for a condition" in refused(*run, "--guidance", "4")


def test_guided_light_steps_are_those_of_each_branch(engine: DecodeEngine) -> None:
    """A branch of a guided step reads what its own rows have kept."""
    none = np.asarray([1, 1])
    filling = Filling(steps=6, full=2, light=1, guidance=4.0)

    def step(tokens: Any, at: Any, kept: Any) -> tuple[Any, Any]:
        made, left = list[Any](), list[dict[str, Any]]()
        for place, label in enumerate((LABELS, none)):
            rows = slice(2 * place, 2 * place + 2)
            given = engine._feed(np.full((2, N), 5), {"label": label}, 0)
            own = {n: a[rows] for n, a in kept.items()}
            scores, held = engine._step(given, tokens[rows], at[rows], own)
            made.append(scores)
            left.append(held)
        return np.concatenate(made), {n: np.concatenate([h[n] for h in left]) for n in left[0]}

    expected = Filler(step, filling, 5, np.random.default_rng(3)).fill(np.full((2, N), 5))
    made = engine.fill(2, label=LABELS, seed=3, steps=6, full=2, guidance=4.0, unconditional_0=none)
    np.testing.assert_array_equal(made, expected)


def test_a_canvas_that_is_begun(engine: DecodeEngine) -> None:
    canvas = np.full((2, N), 5, np.int32)
    canvas[:, ::2] = 1
    made = engine.fill(canvas, condition_0=LABELS, steps=4, full=0, seed=1)
    assert (made[:, ::2] == 1).all()
    assert made.max() < 5
    np.testing.assert_array_equal(canvas[:, 1::2], 5, "what was given stays as it was")


def test_what_does_not_fit_is_refused(engine: DecodeEngine) -> None:
    canvas = np.full((2, N), 5)
    uneven = canvas.copy()
    uneven[0, 0] = 1
    for given, message in (
        (canvas[:, 1:], r"a canvas is \[B, 32\] whole numbers, not \[2, 31\] int64"),
        (canvas.astype(float), "not .2, 32. float64"),
        (canvas + 1, "the token 6 is neither below 5 nor the mask 5"),
        (uneven, "rows have 31, 32 masked positions .id 5."),
        (np.zeros((1, N), int), "rows have 0 masked positions"),
        (0, "whole numbers, not .. int64"),
    ):
        with pytest.raises(RequestError, match=message):
            engine.fill(given, label=LABELS[: np.shape(given)[0] if np.ndim(given) else 1])
    with pytest.raises(RequestError, match="too few for 40 steps"):
        engine.fill(2, label=LABELS, steps=40)
    with pytest.raises(RequestError, match=r"the condition 'condition_0' .* is missing"):
        engine.fill(2)
    with pytest.raises(RequestError, match="no condition 'chosen'"):
        engine.fill(2, label=LABELS, chosen=canvas)
    for told, message in (
        ({"guidance": 3.0}, "guidance=3 needs what stands for a condition in the unconditional"),
        ({"unconditional_0": LABELS}, "unconditional 'condition_0' is read with guidance alone"),
        ({"guidance": 3.0, "unconditional_labl": LABELS}, "no condition 'labl'; did you mean"),
        ({"guidance": -1.0, "unconditional_0": LABELS}, "guidance=-1.0 is not valid; use 0"),
        ({"guidance": 3.0, "unconditional_0": LABELS[:1]}, r"where B is 2, not \[1\]"),
    ):
        with pytest.raises(RequestError, match=message):
            engine.fill(2, label=LABELS, **told)
    with pytest.raises(RequestError, match=r"fills canvases; use engine\.fill"):
        engine.decode(canvas, label=LABELS)
    with pytest.raises(RequestError, match="a canvas, which writes no texts"):
        engine.recognise(canvas, label=LABELS)


def test_a_bundle_without_the_pass(tmp_path: Path) -> None:
    host = write(WIDE, tmp_path / "h.onnx")
    plain = load_decoder(optimize(host, tmp_path / "a.graft").path)
    with pytest.raises(RequestError, match="does not say which id is masked; give mask=ID"):
        plain.fill(1, steps=3)
    assert plain.fill(1, steps=3, mask=7).max() < 3
    assert plain.fill(np.full((1, 6), 2), steps=3, mask=2).max() < 2, "an id that is scored, too"
    with pytest.raises(RequestError, match=r"keeps no features .*rebuild it with --recipe recap"):
        plain.fill(1, steps=3, mask=7, light=1)
    single = Port("canvas", "canvas", "in", "int64", (1, 6))
    with pytest.raises(RequestError, match=r"'canvas' \[1, 6\] int64 has no free batch for two"):
        check_guidance(tmp_path, Filling(guidance=2.0), single, {"label": [1]})
    upscaler = write(UPSCALER, tmp_path / "u.onnx")
    with pytest.raises(GraftlineError, match="the recipe recap is for a canvas; the checkpoint is"):
        optimize(upscaler, tmp_path / "u.graft", recipe="recap")
    with pytest.raises(RequestError, match="is a latent-decoder, which fills no canvas"):
        load_decoder(optimize(upscaler, tmp_path / "u.graft").path).fill(1)


def test_the_command_line(bundle: Bundle, engine: DecodeEngine, tmp_path: Path) -> None:
    np.save(tmp_path / "canvas.npy", np.full((2, N), 5))
    np.save(tmp_path / "label.npy", LABELS)
    told = ("--latents", tmp_path / "canvas.npy", "--condition", f"label={tmp_path / 'label.npy'}")
    expected = engine.fill(2, label=LABELS, seed=4, steps=8)
    result = call("run", bundle.path, *told, "--steps", "8", "--seed", "4")
    assert result.output.split("\n")[:2] == [" ".join(map(str, row)) for row in expected]
    call("run", bundle.path, *told, "--steps", "8", "--seed", "4", "-o", tmp_path / "x.npy")
    np.testing.assert_array_equal(np.load(tmp_path / "x.npy"), expected)
    assert "a canvas holds ids; name a .npy file" in refused(
        "run", bundle.path, *told, "-o", tmp_path / "x.wav", "--sample-rate", "8000"
    )


def test_bench_measures_full_steps_beside_light_ones(
    engine: DecodeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    from graftline.commands import once

    monkeypatch.setattr(once, "peak_of", lambda *_: None)
    feed = once.feed_for(engine, None, {}, None, 0)
    assert feed.main.shape == (1, N)
    assert set(feed.conditions) == {"condition_0"}
    assert (feed.main == 5).all()
    found = once.measured(engine, feed, None, 0, 1, None, lambda _: None)
    light = "filled in 16 steps, behind the first 8 each full one with 1 light"
    names = ["full steps alone", light]
    assert [way.name for way in found.ways] == names


def test_a_kept_operand_of_another_canvas_breaks_the_law(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from graftline.errors import LawBroken
    from graftline.kinds import canvas

    def other(ports: Any, feed: Any, at: Any, kept: Any) -> Any:
        return real(ports, feed, at, {n: np.roll(a, 1, axis=0) for n, a in kept.items()})

    real = canvas.step_of
    monkeypatch.setattr(canvas, "step_of", other)
    with pytest.raises(LawBroken, match="breaks the law 'light' at 'scores'"):
        optimize(bundle.path.parent / "host.onnx", tmp_path / "x.graft", recipe="recap")
    assert Canvas().name == "canvas"
