"""`graftline bench` of bundles that run once."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest

from graftline import load_decoder, optimize
from graftline.commands import once
from graftline.commands.peak import STATUS, peak_of
from tests.commands.calling import call, refused
from tests.kinds.latent_decoders import UPSCALER, VOCODER, write
from tests.kinds.recognisers import PARAFORMER
from tests.kinds.samplers import write_sampler


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("once")
    for name, text in (("voice", VOCODER), ("sharp", UPSCALER)):
        optimize(write(text, place / f"{name}.onnx"), place / f"{name}.graft", passes="window")
    optimize(write(PARAFORMER, place / "heard.onnx"), place / "heard.graft")
    graph, spec = write_sampler(place)
    passes = "collapse-loop | join"
    optimize(graph, place / "drawn.graft", passes=passes, spec=spec, steps=(2, 1, 4))
    return place


def figures(folder: Path, out: Path, *args: str | Path) -> dict[str, dict[str, float]]:
    result = call("bench", folder, *args, "--threads", "1", "--json", out)
    assert result.exit_code == 0, result.output
    assert "latency" in result.stdout
    assert "peak memory" in result.stdout
    return json.loads(out.read_text(encoding="utf-8"))


def test_fewer_steps_are_compared_with_the_most(folder: Path, tmp_path: Path) -> None:
    random = np.random.default_rng(3)
    noise, text = (
        random.standard_normal(s).astype(np.float32) for s in ((1, 4, 8, 8), (1, 3, 6))
    )
    np.save(tmp_path / "noise.npy", noise)
    np.save(tmp_path / "text.npy", text)
    told = ("--latents", tmp_path / "noise.npy", "--condition", f"text={tmp_path / 'text.npy'}")
    found = figures(folder / "drawn.graft", tmp_path / "x.json", *told, "--range", "-1,1")
    assert (found["input"], found["output"]) == ([1, 4, 8, 8], [1, 3, 16, 16])
    assert list(found["ways"]) == ["one step", "2 steps", "4 steps"]
    engine = load_decoder(folder / "drawn.graft")
    made = {n: np.clip(engine.decode(noise, steps=n, text=text), -1, 1) for n in (1, 2, 4)}
    for name, steps in (("one step", 1), ("2 steps", 2)):
        error = np.mean((made[steps].astype(np.float64) - made[4]) ** 2)
        assert found["ways"][name]["psnr"] == pytest.approx(10 * math.log10(4 / error), abs=1e-4)
    assert found["ways"]["4 steps"]["psnr"] is None
    for way in found["ways"].values():
        assert way["seconds"] > 0
        assert way["peak_bytes"] >= way["opened_bytes"] > 1 << 20


def test_windows_have_a_first_one(folder: Path, tmp_path: Path) -> None:
    found = figures(folder / "voice.graft", tmp_path / "x.json", "--length", "400")
    assert (found["input"], found["output"]) == ([1, 6, 400], [1, 1, 3200])
    whole, windows = found["ways"].values()
    assert whole["first_window_seconds"] is None
    assert windows["first_window_seconds"] > 0
    assert windows["window"] == load_decoder(folder / "voice.graft").fields[0].size


def test_images_and_texts_are_drawn_by_the_seed(folder: Path, tmp_path: Path) -> None:
    found = figures(folder / "sharp.graft", tmp_path / "x.json", "--length", "20")
    assert (found["input"], found["output"]) == ([1, 3, 20, 20], [1, 3, 40, 40])
    found = figures(folder / "heard.graft", tmp_path / "y.json", "--repeat", "6")
    assert (found["input"], found["runs"], list(found["ways"])) == ([1, 64, 6], 6, ["whole"])
    engine = load_decoder(folder / "heard.graft")
    one, same, other = (once.feed_for(engine, None, {}, 30, seed) for seed in (1, 1, 2))
    np.testing.assert_array_equal(one.main, same.main)
    assert not np.array_equal(one.main, other.main)
    assert one.conditions["lengths"].tolist() == [30]


def test_every_way_has_its_turn(folder: Path) -> None:
    told: list[str] = []
    engine = load_decoder(folder / "drawn.graft", threads=1)
    feed = once.feed_for(engine, None, {}, 8, 0)
    once.measured(engine, feed, 5, 0, 1, None, told.append)
    turns = [line.partition(": ")[2] for line in told if line.startswith("run ")]
    assert turns == ["one step", "2 steps", "4 steps"] * 5


def test_psnr() -> None:
    expected = np.asarray([0.0, 2.0])
    assert once.psnr(expected, expected) == math.inf
    assert once.psnr(expected + 0.2, expected) == pytest.approx(20)
    assert once.psnr(expected * 5, expected, (0.0, 2.0)) == math.inf
    assert once.psnr(expected + 1, np.ones(2)) == -math.inf


@pytest.mark.skipif(not STATUS.is_file(), reason="this system does not say")
def test_a_window_takes_less_memory_than_the_whole(folder: Path) -> None:
    mel = np.zeros((1, 6, 400_000), np.float32)
    given = {"condition_0": np.zeros((1, 4, 1), np.float32)}
    place = folder / "voice.graft"
    whole, windows = (peak_of(place, 1, False, mel, given, {"window": w}) for w in (0, 64))
    assert whole is not None
    assert windows is not None
    assert whole.run - whole.opened > 2 * (windows.run - windows.opened)


def test_what_does_not_go_together(folder: Path, tiny_bundle: Path, tmp_path: Path) -> None:
    voice = folder / "voice.graft"
    assert "give --prompts FILE.jsonl" in refused("bench", tiny_bundle)
    assert "--recipes is for decoders of text" in refused("bench", voice, "--recipes", "x")
    assert "--length is for bundles that run once" in refused(
        "bench", voice, "--prompts", "x.jsonl", "--length", "3"
    )
    assert "the median of at least 5 runs" in refused("bench", voice, "--repeat", "4")
    assert "not a .npy file of numbers" in refused("bench", voice, "--latents", "absent.npy")
    np.save(tmp_path / "mel.npy", np.zeros((1, 5, 40), np.float32))
    assert "latents 'latents' takes [B, 6, N] float32, not [1, 5, 40]" in refused(
        "bench", voice, "--latents", tmp_path / "mel.npy"
    )
    assert "leave it out, or --latents" in refused(
        "bench", voice, "--latents", tmp_path / "mel.npy", "--length", "8"
    )
    told = f"speakr={tmp_path / 'mel.npy'}"
    assert "did you mean 'speaker'?" in refused("bench", voice, "--condition", told)
    assert "use LOW,HIGH" in refused("bench", voice, "--range", "1,0")
    assert "its folder does not exist" in refused("bench", voice, "--json", "nowhere/x.json")
