"""A target whose exit's stream runs ahead by accelerators: lossless, its caches its own."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from graftline.build.optimize import optimize
from graftline.bundle.reader import Bundle
from graftline.bundle.store import load_graph
from graftline.errors import GraftlineError
from tests.free_engine import answers_are_plains, free
from tests.m2r2_files import seeded, write_m2r2
from tests.tiny_checkpoints import WIDE, TinyCheckpoint

SPEC = replace(WIDE, layers=4)
BLOCKS = 2


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("m2r2")


@pytest.fixture(scope="module")
def checkpoint(known_checkpoints: dict[Path, Any], folder: Path) -> Path:
    path = folder / "checkpoint"
    path.mkdir()
    known_checkpoints[path] = TinyCheckpoint(path, SPEC)
    return path


@pytest.fixture(scope="module")
def bundle(checkpoint: Path, folder: Path) -> Bundle:
    head = write_m2r2(folder / "head", seeded(BLOCKS, SPEC.hidden, 8), SPEC.layers)
    return optimize(checkpoint, folder / "m2r2.graft", head=str(head), dtype="int4")


def prompts() -> list[list[int]]:
    random = np.random.default_rng(5)
    return [random.integers(0, 256, n).tolist() for n in (5, 17)]


def test_the_accelerators_are_in_the_exit_alone(bundle: Bundle) -> None:
    manifest = bundle.manifest
    assert manifest.recipe == "m2r2"
    assert f"--exit {BLOCKS} --head" in manifest.rebuild, "the exit is that of the files"
    held = {
        name: {n for n in load_graph(bundle.graph(name)).graph.initializers if "accelerator" in n}
        for name in ("ort-cpu", "exit-2", "rest-2", "rows-4")
    }
    thin = {f"accelerator.{n}.{part}" for n in range(BLOCKS) for part in ("scale", "down", "up")}
    assert thin <= held.pop("exit-2"), "as they are in the files, beside blocks of few bits"
    assert not any(held.values())
    laws = {(row.graft.partition("{")[0], row.law) for row in manifest.laws
            if row.status == "held"}  # fmt: skip
    expected = {("accelerated-exit", "accelerated"), ("accelerated-exit", "plain-exit"),
                ("exit-2", "prefix"), ("exit-2", "depth"), ("rest-2", "resumed")}  # fmt: skip
    assert expected <= laws


@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_tokens_are_those_of_plain_decoding(bundle: Bundle, temperature: float) -> None:
    answers_are_plains(bundle.path, prompts(), temperature)


def test_work_is_saved(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every row of a draft goes through the exit once, and only the blocks behind it verify."""
    engine = free(bundle.path)
    (way,) = engine.resources.exits()
    calls: dict[str, list[int]] = {"exit": [], "rest": [], "whole": []}
    sessions = {"exit": way.engine.session, "rest": way.rest, "whole": engine.session}
    for name, session in sessions.items():
        ran = session._run

        def run(call: Any, name: str = name, ran: Any = ran) -> Any:
            calls[name].append(call.tokens.size)
            return ran(call)

        monkeypatch.setattr(session, "_run", run)
    result = engine.generate(prompts()[1], max_new_tokens=24, ignore_eos=True)
    assert calls["whole"] in ([17], [17, 1])
    assert calls["exit"] == [1] * sum(calls["rest"])
    assert sum(calls["rest"]) == len(calls["rest"]) + result.stats.drafted


REFUSED = [
    ({"head": "head:int8"}, "part of the target's exit, and stay fp32; give"),
    ({"head": "head", "exits": (1,)}, "was trained behind the first 2 blocks; leave --exit out"),
    ({"head": "narrow"}, "hidden_size is 16, but .* needs "),
    ({"head": "head", "recipe": "layer-skip"}, "layer-skip reads no draft head"),
    ({"head": "head", "recipe": "kangaroo"}, "holds m2r2 heads; use --recipe m2r2"),
    ({"recipe": "m2r2", "exits": (2,)}, "the recipe m2r2 needs a draft head; add --head"),
]


@pytest.mark.parametrize(("options", "message"), REFUSED, ids=lambda o: str(o)[:50])
def test_what_does_not_go_together_is_refused(
    checkpoint: Path, bundle: Bundle, folder: Path, options: dict[str, Any], message: str
) -> None:
    if not (folder / "narrow").is_dir():
        write_m2r2(folder / "narrow", seeded(BLOCKS, 16), SPEC.layers)
    head = options.get("head")
    given = options | ({} if head is None else {"head": str(folder / head)})
    with pytest.raises(GraftlineError, match=message) as caught:
        optimize(checkpoint, folder / "out", **given)
    assert "\n" not in str(caught.value)
    assert not (folder / "out").exists()
