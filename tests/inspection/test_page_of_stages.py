"""The page of every kind of bundle in a real Chromium: each stage, step by step."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from graftline.build.optimize import optimize
from graftline.bundle.reader import Bundle
from graftline.inspection.bundle_page import bundle_page
from graftline.inspection.page import write_page
from tests.inspection.browser import OVERLAPS, browser, opened
from tests.kinds.latent_decoders import VOCODER, write
from tests.kinds.samplers import write_sampler
from tests.medusa_files import seeded, write_safe
from tests.tiny_checkpoints import WIDE, TinyCheckpoint

DEEP = replace(WIDE, layers=4)
Make = Callable[[Path, Path], Bundle]


def of_head(checkpoint: Path, folder: Path) -> Bundle:
    head = write_safe(folder / "head", seeded(DEEP.hidden, DEEP.vocabulary, heads=3))
    return optimize(checkpoint, folder / "x.graft", head=str(head), step="fused")


def of_sampler(checkpoint: Path, folder: Path) -> Bundle:
    graph, spec = write_sampler(folder)
    passes = "fold-guidance | collapse-loop | join"
    return optimize(graph, folder / "x.graft", passes=passes, spec=spec, steps=(1, 2))


def of_windows(checkpoint: Path, folder: Path) -> Bundle:
    return optimize(write(VOCODER, folder / "x.onnx"), folder / "x.graft", passes="window")


def of(**options: Any) -> Make:
    return lambda checkpoint, folder: optimize(checkpoint, folder / "x.graft", **options)


KINDS: Mapping[str, tuple[Make, list[str]]] = {
    "draft": (of(recipe="draft-model", draft="int8"), ["ort-cpu", "draft"]),
    "head": (of_head, ["ort-cpu", "fused", "head.0"]),
    "exit": (of(recipe="layer-skip", exits=(2,)), ["ort-cpu", "exit-2", "rest-2"]),
    "route": (of(recipe="self-skip", skip="2"), ["ort-cpu", "route"]),
    "sampler": (of_sampler, ["ort-cpu", "steps-2"]),
    "windows": (of_windows, ["ort-cpu"]),
}
"""How each is made, and stages that it has."""


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    with browser() as started:
        yield started


@pytest.fixture(scope="module")
def checkpoint(
    known_checkpoints: dict[Path, Any], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    path = tmp_path_factory.mktemp("checkpoint")
    known_checkpoints[path] = TinyCheckpoint(path, DEEP)
    return path


@pytest.mark.parametrize("kind", KINDS)
def test_every_step_to_every_stage_is_drawn(
    chromium: Any, checkpoint: Path, tmp_path: Path, kind: str
) -> None:
    make, stages = KINDS[kind]
    told: list[str] = []
    page = bundle_page(make(checkpoint, tmp_path), None, told.append)
    assert [line for line in told if not line.startswith("drawing the way to ")] == []
    assert len(told) == len(page["tracks"])
    write_page(page, tmp_path / "page.html")
    one = opened(chromium, tmp_path / "page.html")
    chosen = one.page.locator("select[aria-label=Stage]")
    shown = chosen.locator("option").all_text_contents() if chosen.count() else stages
    assert set(stages) <= set(shown)
    for name in stages:
        if chosen.count():
            chosen.select_option(name)
        steps = one.page.locator(".steps button")
        labels = steps.all_text_contents()
        assert labels[-1] == name
        assert len(labels) > 2, "graphs, and passes between them"
        for number in range(len(labels)):
            steps.nth(number).click()
            assert one.page.locator(".node").count() > 0, labels[number]
            assert one.page.evaluate(OVERLAPS) == 0, labels[number]
    assert one.told == []
    one.page.close()
