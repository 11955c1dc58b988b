"""A training on another device mixes none, and ends with the numbers of one on the CPU."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from graftline.models.training.crew import Crew
from graftline.models.training.kinds import KINDS
from graftline.models.training.run import Job, train
from tests.models.training.conftest import MakeJob
from tests.models.training.predictable import Stops
from tests.models.training.pretend_device import DEVICE, PretendCrew, PretendDevice

CASES = [("medusa", "v1"), *((kind, "v2") for kind in KINDS)]


def silent(line: str) -> None:
    """Nobody reads."""


def weights(out: Path) -> bytes:
    (file,) = out.glob("*.safetensors")
    return file.read_bytes()


def given(job: MakeJob, kind: str, form: str, out: str) -> Job:
    """A job that has every part: looks, a state that is kept, and for bigrams heads."""
    rate, steps = (0.5, 20) if kind == "router" else (2e-2, 3)
    options = {"rate": rate, "optimizer": "muon", "count": 12, "scored": 64}  # some are drawn
    made = job(kind, form, out=out, steps=steps, **options)
    if kind == "markov":
        heads = job("medusa", out="heads", steps=12)
        train(heads, silent)
        made = replace(made, head=replace(made.head, of=str(heads.out)))
    return made


@pytest.mark.parametrize(("kind", "form"), CASES)
def test_a_training_on_a_device_mixes_no_two(job: MakeJob, kind: str, form: str) -> None:
    here, there = (given(job, kind, form, out) for out in ("here", "there"))
    with sdpa_kernel(SDPBackend.MATH):  # the one that every device has
        train(here, silent)
        with PretendDevice():
            train(there, silent, PretendCrew())
    assert weights(here.out) == weights(there.out)


def test_a_state_is_kept_and_gone_on_with_on_a_device(job: MakeJob, cache: Path) -> None:
    whole, parts = (job(out=out, steps=8, optimizer="muon", count=12) for out in ("a", "b"))
    train(whole, silent)
    with PretendDevice():
        with pytest.raises(KeyboardInterrupt, match="as of step"):
            train(parts, Stops("training: step", 3), PretendCrew())
        train(parts, silent, PretendCrew())
    assert weights(whole.out) == weights(parts.out)


@pytest.mark.gpu
@pytest.mark.parametrize(("kind", "form"), CASES)
@pytest.mark.parametrize("bf16", [False, True])
def test_a_gpu_learns_what_the_cpu_does(job: MakeJob, kind: str, form: str, bf16: bool) -> None:
    if not torch.cuda.is_available():
        pytest.skip("no NVIDIA GPU here")
    here, there = (given(job, kind, form, out) for out in ("here", "there"))
    if kind != "markov":
        here, there = (replace(j, settings=replace(j.settings, steps=60)) for j in (here, there))
    there = replace(there, settings=replace(there.settings, bf16=bf16))
    one, other = train(here, silent), train(there, silent, Crew.open("cuda"))
    assert one.found is not None
    assert other.found is not None
    assert abs(one.found.tokens - other.found.tokens) < 0.5  # random streams of their own
    assert torch.cuda.get_device_name() in (there.out / "README.md").read_text()


def test_the_device_that_is_pretended_is_one() -> None:
    with PretendDevice():
        one = torch.ones(2, 2, device=DEVICE)
        assert (one @ one).cpu().tolist() == [[2.0, 2.0], [2.0, 2.0]]
        with pytest.raises(RuntimeError, match="two devices"):
            one @ torch.ones(2, 2)
        with pytest.raises(TypeError, match=r"use Tensor\.cpu"):
            one.numpy()
