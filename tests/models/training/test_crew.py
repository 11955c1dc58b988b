"""Two processes that train together do as one would that reads both their packs at every step."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from graftline.errors import GraftlineError
from graftline.models.heads import open_head
from graftline.models.training import run, trainer
from graftline.models.training.crew import ALONE
from graftline.models.training.head_lesson import HeadLesson
from graftline.models.training.kinds import Beginning
from graftline.models.training.rows import Row
from graftline.models.training.run import train
from tests.models.training.member import STEPS, job
from tests.models.training.predictable import write_host

ROOT = Path(__file__).parents[3]
Seen = tuple[dict[str, Any], list[dict[str, torch.Tensor]]]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where two processes have trained."""
    folder = tmp_path_factory.mktemp("crew")
    write_host(folder / "host")
    environment = {**os.environ, "XDG_CACHE_HOME": str(folder / "cache"), "OMP_NUM_THREADS": "1",
                   "PYTHONPATH": str(ROOT)}  # fmt: skip
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    done = subprocess.run(
        [*launcher, "-m", "tests.models.training.member", str(folder / "host")],
        env=environment, capture_output=True, text=True, timeout=240, cwd=ROOT,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (folder / "said.txt").write_text(done.stdout)
    return folder


@pytest.fixture(scope="module")
def seen(place: Path) -> list[Seen]:
    """What each process saw, and its weights at the end of each training."""
    found: list[Seen] = []
    for rank in range(2):
        words, *kept = torch.load(place / f"seen-{rank}.pt")
        found.append((words, kept))
    return found


@pytest.fixture
def cache(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(place / "cache"))


def answers(place: Path) -> list[Row]:
    """What they learned from: the rows of the one file that both trainings read."""
    return run.read_rows(sorted((place / "cache/graftline/training/states").iterdir()))


def same(one: dict[str, torch.Tensor], two: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(one[name], two[name]) for name in one.keys() | two.keys())


def test_all_processes_end_with_the_same_weights(seen: list[Seen]) -> None:
    (_, one), (_, two) = seen
    assert len(one) == len(two) == 4, "a training, one in two parts, and one by the clock"
    assert all(same(a, b) for a, b in zip(one, two, strict=True))
    assert one[0]["layers.0.weight"].abs().max() > 0.01, "something was learned"


def test_they_are_those_of_the_mean_of_both_gradients(
    place: Path, seen: list[Seen], cache: None
) -> None:
    given = job(place / "host", "reference")
    rows = answers(place)
    learned, held_out = run._parted(rows, given.settings.seed)  # type: ignore[attr-defined]
    host = run.FrozenHost(given.folder)
    student = Beginning(host, learned, held_out, given.settings.seed, print).student(
        given.head, ALONE
    )
    lesson, settings = HeadLesson(student, learned, held_out, given.settings), given.settings
    parameters = list(lesson.parameters.values())
    (optimizer,) = trainer._optimizers(lesson.parameters, settings)  # type: ignore[attr-defined]
    for step in range(STEPS):
        optimizer.param_groups[0]["lr"] = settings.rate * trainer._slope(step / STEPS)  # type: ignore[attr-defined]
        gradients: list[tuple[torch.Tensor, ...]] = []
        for number in (2 * step, 2 * step + 1):
            random = torch.Generator().manual_seed(settings.seed * 1_000_003 + number)
            loss = lesson.loss(number, step / STEPS, random)
            gradients.append(torch.autograd.grad(loss, parameters))
        for parameter, one, two in zip(parameters, *gradients, strict=True):
            parameter.grad = (one + two) / 2
        torch.nn.utils.clip_grad_norm_(parameters, trainer.CLIP)
        optimizer.step()
    assert same(seen[0][1][0], lesson.parameters)


def test_a_process_whose_texts_teach_nothing_counts_as_zeros(seen: list[Seen]) -> None:
    assert [words["averaged"] for words, _ in seen] == [(4.0, True, [1.5, 1.5], None)] * 2


def test_all_begin_as_the_main_one_does(seen: list[Seen]) -> None:
    assert [words["spread"] for words, _ in seen] == [[0.0, 0.0]] * 2


def test_ctrl_c_in_one_stops_all_and_they_go_on_to_the_same(place: Path, seen: list[Seen]) -> None:
    for words, kept in seen:
        assert words["stopped"] == (
            f"KeyboardInterrupt: {place / 'parts'} is the head as of step 3; run the same command "
            "to go on"
        )
        assert not same(kept[0], kept[1])
        assert same(kept[0], kept[2])
        assert words["looks"][0] == words["looks"][1]
    names = ("medusa_lm_head.safetensors", "config.json")
    assert all((place / f"whole/{n}").read_bytes() == (place / f"parts/{n}").read_bytes()
               for n in names)  # fmt: skip


def test_what_fails_in_the_main_process_ends_the_others(seen: list[Seen]) -> None:
    (main, _), (other, _) = seen
    assert main["broken"] == "GraftlineError: the engine is gone"
    assert other["broken"] == "Ended: process 1 of 2 ends with the main one"


def test_the_main_processs_clock_is_everybodys(seen: list[Seen]) -> None:
    (main, _), (other, _) = seen
    assert main["timed"] == other["timed"] > 0


def test_one_writes_and_prints(place: Path, seen: list[Seen]) -> None:
    (main, _), (other, _) = seen
    assert main["states"] >= 4, "one at the end of each, and where it was stopped"
    assert other["states"] == 0
    assert main["size"] == other["size"]
    assert open_head(place / "whole").settings.heads == 3
    assert ", 2 processes" in (place / "whole" / "README.md").read_text()
    said = (place / "said.txt").read_text()
    assert said.count("2 processes train; this one answers and reads alone, the others wait") == 5
    assert said.count(f"training: step {STEPS} of {STEPS}") == 2


def test_another_number_of_processes_is_refused(place: Path, seen: list[Seen], cache: None) -> None:
    with pytest.raises(GraftlineError, match=r"reads 2 packs .* the processes now are 1: start 2"):
        train(job(place / "host", "whole"), print)
