"""Schedules and the sampling loop, beside the published formulas written out in numpy."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from graftline.errors import GraftlineError
from graftline.sampling.loop import by_scale, draw, fresh_steps, guided
from graftline.sampling.schedule import signal_shares, time_steps, trajectory
from graftline.sampling.spec import Sampling

DDIM = Sampling("epsilon", "ddim", 4)
SD: dict[str, Any] = {"betas": "scaled-linear", "beta_start": 0.00085, "beta_end": 0.012}
"""Stable Diffusion's training."""
PYRAMID: dict[str, Any] = {
    "scheduler": "pyramid", "prediction": "flow", "scales": 3, "steps": 6,
}  # fmt: skip


def said(x: np.ndarray, time: float) -> np.ndarray:
    """A network: what it says depends on the sample and the time."""
    return np.tanh(1.3 * x + time / 700).astype(x.dtype)


def noise(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((2, 4, 3, 3))


def noise_of(seed: int) -> np.ndarray:
    """Of a size that can be halved twice."""
    return np.random.default_rng(seed).standard_normal((2, 4, 8, 8))


def shares(train: int, first: float, last: float) -> np.ndarray:
    return np.cumprod(1.0 - np.linspace(first**0.5, last**0.5, train) ** 2)


def test_stable_diffusions_shares_are_known() -> None:
    kept = signal_shares(replace(DDIM, **SD))
    np.testing.assert_allclose(kept[[0, 999]], [0.99915, 0.00466], rtol=2e-3)
    sigmas = np.sqrt((1 - kept) / kept)
    np.testing.assert_allclose(sigmas[[0, 999]], [0.0292, 14.6146], rtol=2e-3)


@pytest.mark.parametrize(
    ("spacing", "offset", "expected"),
    [
        ("leading", 1, [751, 501, 251, 1]), ("leading", 0, [750, 500, 250, 0]),
        ("trailing", 0, [999, 749, 499, 249]), ("linspace", 0, [999, 666, 333, 0]),
    ],
)  # fmt: skip
def test_time_steps_are_spaced_as_lin_et_al_say(
    spacing: Any, offset: int, expected: list[int]
) -> None:
    assert time_steps(replace(DDIM, spacing=spacing, offset=offset)).tolist() == expected


def test_ddim_is_equation_12_with_the_noise_of_16() -> None:
    told = replace(DDIM, spacing="trailing", eta=0.7, **SD)
    kept, times = shares(1000, 0.00085, 0.012), [999, 749, 499, 249]
    x, fresh = noise(), [noise(i) for i in range(1, 4)]
    got = draw(told, x, fresh, said)
    assert fresh_steps(told) == (0, 1, 2)
    left = list(fresh)
    for here, there in zip(times, [*times[1:], None], strict=True):
        a, b = kept[here], 1.0 if there is None else kept[there]
        epsilon = said(x, here)
        sigma = 0.7 * np.sqrt((1 - b) / (1 - a)) * np.sqrt(1 - a / b)
        clean = (x - np.sqrt(1 - a) * epsilon) / np.sqrt(a)
        x = np.sqrt(b) * clean + np.sqrt(1 - b - sigma**2) * epsilon
        x = x + sigma * left.pop(0) if sigma else x
    np.testing.assert_allclose(got, x, rtol=1e-9)


def test_euler_walks_along_the_slope_of_karras_et_al() -> None:
    told = replace(DDIM, scheduler="euler", spacing="trailing", **SD)
    kept, times = shares(1000, 0.00085, 0.012), [999, 749, 499, 249]
    sigmas = [*np.sqrt((1 - kept[times]) / kept[times]), 0.0]
    x = noise() * sigmas[0]
    for time, here, there in zip(times, sigmas, sigmas[1:], strict=False):
        epsilon = said(x / np.sqrt(here**2 + 1), time)
        clean = x - here * epsilon
        x = x + (x - clean) / here * (there - here)
    np.testing.assert_allclose(draw(told, noise(), [], said), x, rtol=1e-9)
    assert trajectory(replace(told, spacing="leading")).start == pytest.approx(
        np.sqrt((1 - kept[750]) / kept[750] + 1)
    )


def test_ancestral_steps_add_as_much_noise_as_they_take_more_of() -> None:
    moments = trajectory(replace(DDIM, scheduler="euler-ancestral", **SD)).moments
    for one, after in pairwise(moments):
        assert one.there.noise**2 + one.fresh**2 == pytest.approx(after.here.noise**2)
    assert not moments[-1].fresh


def test_flow_matching_walks_along_straight_lines() -> None:
    told = Sampling("flow", "flow-match", 4, shift=3.0)

    def shifted(sigma: float) -> float:
        return 3 * sigma / (1 + 2 * sigma)

    sigmas = [shifted(s) for s in np.linspace(1.0, shifted(0.001), 4)] + [0.0]
    x = noise()
    for here, there in pairwise(sigmas):
        x = x + (there - here) * said(x, here * 1000)
    np.testing.assert_allclose(draw(told, noise(), [], said), x, rtol=1e-9)


def test_consistency_sampling_noises_the_clean_sample_again() -> None:
    told = replace(DDIM, scheduler="lcm", **SD)
    kept, times = shares(1000, 0.00085, 0.012), [999, 759, 499, 259]
    x, fresh = noise(), [noise(i) for i in range(1, 4)]
    got, left = draw(told, x, fresh, said), list(fresh)
    for here, there in zip(times, [*times[1:], None], strict=True):
        a, scaled = kept[here], here * 10.0
        clean = (x - np.sqrt(1 - a) * said(x, here)) / np.sqrt(a)
        skip, out = 0.25 / (scaled**2 + 0.25), scaled / np.sqrt(scaled**2 + 0.25)
        x = skip * x + out * clean
        if there is not None:
            b = kept[there]
            x = np.sqrt(b) * x + np.sqrt(1 - b) * left.pop(0)
    np.testing.assert_allclose(got, x, rtol=1e-9)


def test_a_pyramid_begins_at_averages_and_adds_what_varies_within_blocks() -> None:
    """Two scales in one step each, by Jin et al., section 3.2, with gamma 1/3."""
    told, white = Sampling("flow", "pyramid", 2, scales=2), noise_of(4)
    blocks = white.reshape(2, 4, 4, 2, 4, 2).mean((3, 5))
    x = 2 * blocks - said(2 * blocks, 1000)
    half, gamma = 0.5, 1 / 3
    kept = 1 / (np.sqrt(1 + 1 / gamma) * half + half)
    starts = 1 - kept * half
    time = 1000 - int(half / (half + starts) * 1000)
    within = (white - np.kron(blocks, np.ones((2, 2)))) * np.sqrt(1 + gamma)
    x = kept * np.kron(x, np.ones((2, 2))) + kept * half / np.sqrt(gamma) * within
    x = x - said(x, time)
    np.testing.assert_allclose(draw(told, white, [], said), x, rtol=1e-9)


@pytest.mark.parametrize("scales", [2, 3])
def test_doubled_noise_is_white(scales: int) -> None:
    """All that is left of noise after a scale, doubled and with its share of new noise, is the
    noise of the next size times its share, whatever lies between."""
    told = Sampling("flow", "pyramid", scales, scales=scales)
    moments, white = trajectory(told).moments, noise_of(scales)
    first, *finer = by_scale(white, scales)
    coarse = [first]
    while len(coarse) < scales:
        within = finer[len(coarse) - 1] * np.sqrt(3)
        coarse.append((np.kron(coarse[-1], np.ones((2, 2))) + within) / 2)
    np.testing.assert_allclose(coarse[-1], white, atol=1e-9)
    for scale in range(1, scales):
        assert moments[scale].doubled is not None
        kept, added = moments[scale].doubled
        share = 1 - scale * 1000 // scales / 1000
        got = kept * share * np.kron(coarse[scale - 1], np.ones((2, 2)))
        np.testing.assert_allclose(
            got + added * finer[scale - 1], (1 - kept * (1 - share)) * coarse[scale], atol=1e-9
        )


def test_all_predictions_say_the_same_of_one_sample() -> None:
    """A network that knows the clean sample gives it in any of the four, by one step."""
    clean, first = noise(3), noise()
    for kind in ("epsilon", "x0", "v"):
        told = replace(DDIM, prediction=kind, steps=1, spacing="trailing", **SD)
        (moment,) = trajectory(told).moments
        a, s = moment.here.signal, moment.here.noise
        x = first
        epsilon = (x - a * clean) / s
        known = {"epsilon": epsilon, "x0": clean, "v": a * epsilon - s * clean}[kind]
        got = draw(told, first, [], lambda x, t, known=known: known)
        np.testing.assert_allclose(got, clean, rtol=1e-6)
    flow = draw(Sampling("flow", "flow-match", 1), first, [], lambda x, t: first - clean)
    np.testing.assert_allclose(flow, clean, rtol=1e-9)


def test_clipping_bounds_the_clean_sample() -> None:
    told = replace(DDIM, prediction="x0", steps=1, clip=0.5)
    got = draw(told, noise(), [], lambda x, t: x * 9)
    assert np.max(np.abs(got)) == 0.5


def test_guidance_goes_beyond_the_unconditional_prediction() -> None:
    assert guided(3.0, np.ones(2, np.float32), np.full(2, 0.5, np.float32)).tolist() == [2.0, 2.0]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"steps": 0}, "sampling.steps is 0; it must be 1 to train_steps"),
        ({"steps": 1001}, "sampling.steps is 1001"),
        ({"eta": 0.5, "scheduler": "euler"}, "sampling.eta is 0.5; it must be 0 unless ddim"),
        ({"prediction": "flow"}, "sampling.prediction is flow; it must be 'flow' for the sched"),
        ({"beta_start": 0.5}, "sampling.beta_start is 0.5; it must be 0 to beta_end"),
        ({"steps": 60, "scheduler": "lcm"}, "at most original_steps for lcm"),
        ({"scales": 2}, "sampling.scales is 2; it must be 1 unless pyramid"),
        ({**PYRAMID, "steps": 7}, "sampling.steps is 7; it must be a multiple of scales for pyr"),
        ({**PYRAMID, "scales": 7}, "sampling.scales is 7; it must be 2 to 6 for pyramid"),
        ({**PYRAMID, "clip": 1.0}, "sampling.clip is 1.0; it must be 0 for pyramid"),
        ({**PYRAMID, "shift": 3.0}, "sampling.shift is 3.0; it must be 1 for pyramid"),
        ({"steps": 1000, "offset": 5}, "sampling.offset is 5: the first of 1000 time steps is"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused_by_its_field(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(GraftlineError, match=message):
        trajectory(replace(DDIM, **wrong))


def test_consistency_steps_are_those_of_song_et_al() -> None:
    """Algorithm 1, written out: clean samples, and new noise up to the next sigma."""
    sampling = Sampling("x0", "consistency", 3, sigmas=(80.0, 5.0, 0.6), sigma_min=0.1)
    assert fresh_steps(sampling) == (0, 1)
    first, fresh = noise(), [noise(1), noise(2)]
    x = said(80.0 * first, 80.0)
    for sigma, new in zip((5.0, 0.6), fresh, strict=True):
        x = said(x + np.sqrt(sigma**2 - 0.1**2) * new, sigma)
    np.testing.assert_allclose(draw(sampling, first, fresh, said), x, rtol=1e-12)
    two = replace(sampling, steps=2)
    assert [m.time for m in trajectory(two).moments] == [80.0, 5.0]
