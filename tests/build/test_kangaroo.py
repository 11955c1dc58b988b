"""A target that drafts through an adapter behind its exit: lossless, its cache always the target's.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from graftline.build.check import check
from graftline.build.optimize import optimize
from graftline.bundle.pack import pack
from graftline.bundle.reader import Bundle
from graftline.bundle.store import load_graph
from graftline.errors import GraftlineError
from graftline.inspection.bundle_page import bundle_page
from graftline.recipe import recipe
from graftline.runtimes.drafters.kangaroo import Kangaroo
from graftline.runtimes.load import load
from tests.free_engine import answers_are_plains, free
from tests.kangaroo_files import seeded, write_kangaroo
from tests.tiny_checkpoints import WIDE, TinyCheckpoint

SPEC = replace(WIDE, layers=4)
BLOCKS, HEADS, KV, VOCABULARY = 2, 2, 1, 260


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("kangaroo")


@pytest.fixture(scope="module")
def checkpoint(known_checkpoints: dict[Path, Any], folder: Path) -> Path:
    path = folder / "checkpoint"
    path.mkdir()
    known_checkpoints[path] = TinyCheckpoint(path, SPEC)
    return path


def adapter(folder: Path, hidden: int = SPEC.hidden, **config: Any) -> Path:
    tensors = seeded(hidden, HEADS, KV)
    return write_kangaroo(folder, tensors, HEADS, KV, VOCABULARY, **config)


@pytest.fixture(scope="module")
def bundle(checkpoint: Path, folder: Path) -> Bundle:
    head = adapter(folder / "head", exit_layer=BLOCKS)
    return optimize(checkpoint, folder / "kangaroo.graft", head=str(head))


def prompts() -> list[list[int]]:
    random = np.random.default_rng(5)
    return [random.integers(0, 256, n).tolist() for n in (5, 17, 40)]


def test_the_adapter_is_part_of_the_exit_and_its_cache_of_the_target(bundle: Bundle) -> None:
    manifest = bundle.manifest
    assert manifest.recipe == "kangaroo"
    assert {stage.owner for stage in manifest.stages.values()} == {"target"}
    assert f"--exit {BLOCKS} --head" in manifest.rebuild, "the exit is the adapter's own"
    caches = {
        name: {p.role for p in manifest.stages[name].ports if p.role.startswith("adapter.")}
        for name in ("ort-cpu", "exit-2", "rest-2", "rows-4")
    }
    both = {"adapter.key", "adapter.value"}
    assert caches == {"ort-cpu": both, "exit-2": both, "rest-2": set(), "rows-4": both}
    counts = [
        sum(n.op_type == "GroupQueryAttention" for n in load_graph(bundle.graph(name)).graph)
        for name in ("exit-2", "rest-2", "ort-cpu")
    ]
    assert counts == [3, 2, 4], "the target computes no attention of the adapter's"
    held = {(row.graft, row.law) for row in manifest.laws if row.status == "held"}
    expected = {("exit-2", "prefix"), ("exit-2", "depth"), ("rest-2", "joined"),
                ("rest-2", "resumed"), ("adapter-exit", "adapted"), ("rows-2", "form")}  # fmt: skip
    assert expected <= held
    assert any(law == "adapter-rows" for _, law in held)


def test_check_makes_it_again_and_compares_answers(bundle: Bundle) -> None:
    report = check(bundle.path)
    assert report.holds, [f for f in report.findings if not f.holds]
    assert any(f.what.startswith("greedy tokens, kangaroo") for f in report.findings)


@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_tokens_are_those_of_plain_decoding(bundle: Bundle, temperature: float) -> None:
    answers_are_plains(bundle.path, prompts(), temperature)


@pytest.mark.parametrize("batch", [1, 3])
def test_the_cache_of_the_adapter_goes_with_the_targets(bundle: Bundle, batch: int) -> None:
    """After drafts, accepted and not, it holds what reading the whole text at once would write."""
    engine = free(bundle.path)
    texts = prompts()[:batch]
    results = engine.generate(texts, max_new_tokens=24, ignore_eos=True)
    accepted = sum(r.stats.spec_decode.num_accepted_tokens for r in results)
    assert 0 < accepted < sum(r.stats.drafted for r in results)
    session, fresh = engine.session, engine.session.sibling()
    for row, (text, result) in enumerate(zip(texts, results, strict=True)):
        whole = np.asarray([*text, *result.tokens])
        length = len(whole) - 1
        fresh.reset(1)
        fresh.prefill([whole[:length]])
        for name, cache in fresh.caches(0).items():
            got = session.caches(row)[name][:, :, :length]
            np.testing.assert_allclose(got, cache[:, :, :length], atol=1e-4, err_msg=name)


def test_work_is_saved(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    """The adapter reads no prompt and catches up with nothing: every row of a draft goes through
    the exit once, and only the blocks behind it verify."""
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


def test_an_unsure_token_is_the_last_of_its_draft(bundle: Bundle) -> None:
    """At a threshold that no token meets one is drafted, at 0 as many as there are rows."""
    drafted = []
    for threshold in (1.0, 0.0):
        chosen = recipe("kangaroo")
        options = {**chosen.options, "length": f"confidence{{threshold={threshold}}}"}
        engine = free(bundle.path, recipe=replace(chosen, options=options))
        stats = engine.generate(prompts()[0], max_new_tokens=20, ignore_eos=True).stats
        drafted.append(stats.drafted / stats.steps)
    assert drafted[0] <= 1.0
    assert drafted[1] > 4.0


def test_a_bid_decides_without_a_policy(bundle: Bundle) -> None:
    """As for early exit: what is not worth a row is not drafted."""
    chosen = recipe("kangaroo")
    engine = free(bundle.path, recipe=replace(chosen, options={"rows": 4}))
    plain = engine.generate(prompts()[0], recipe="plain", max_new_tokens=20, ignore_eos=True)
    own = engine.generate(prompts()[0], max_new_tokens=20, ignore_eos=True)
    assert own.tokens == plain.tokens
    assert own.stats.drafted > 0


def test_few_bits(checkpoint: Path, folder: Path, bundle: Bundle) -> None:
    made = optimize(checkpoint, folder / "int4", head=str(folder / "head"), dtype="int4")
    engine = free(made.path)
    plain = engine.generate(prompts()[1], recipe="plain", max_new_tokens=20, ignore_eos=True)
    own = engine.generate(prompts()[1], max_new_tokens=20, ignore_eos=True)
    assert own.tokens == plain.tokens
    assert own.stats.drafted > 0


REFUSED = [
    ({"head": "no-exit:int8", "exits": (2,)}, "part of the target's exit, in the target's prec"),
    ({"head": "no-exit"}, "the recipe kangaroo needs an exit; add --exit 8"),
    ({"head": "no-exit", "exits": (1, 2)}, "--exit 1,2: a draft head stands behind the one ex"),
    ({"head": "no-exit", "exits": (4,)}, "--exit 4: the target has 4 blocks, .* use 1 to 3"),
    ({"head": "head", "exits": (1,)}, "was trained behind the first 2 blocks; leave --exit out"),
    ({"head": "narrow", "exits": (2,)}, "hidden_size is 16, but .* needs 32"),
    ({"recipe": "kangaroo", "exits": (2,)}, "the recipe kangaroo needs a draft head; add --head"),
    ({"head": "no-exit", "exits": (2,), "recipe": "layer-skip"}, "layer-skip reads no draft head"),
    ({"head": "no-exit", "exits": (2,), "recipe": "medusa"}, "holds kangaroo heads; use --recipe"),
    ({"head": "no-exit", "exits": (2,), "target": "ort-cuda"}, "--exit needs --target ort-cpu"),
    ({"head": "no-exit", "exits": (2,), "passes": "select-rows"}, "put kv-cache before it"),
]  # fmt: skip


@pytest.mark.parametrize(("options", "message"), REFUSED, ids=lambda o: str(o)[:50])
def test_what_does_not_go_together_is_refused(
    checkpoint: Path, bundle: Bundle, folder: Path, options: dict[str, Any], message: str
) -> None:
    if not (folder / "no-exit").is_dir():
        adapter(folder / "no-exit")
        adapter(folder / "narrow", hidden=16)
    head = options.get("head")
    given = options | ({} if head is None else {"head": str(folder / head)})
    with pytest.raises(GraftlineError, match=message) as caught:
        optimize(checkpoint, folder / "out", **given)
    assert "\n" not in str(caught.value)
    assert not (folder / "out").exists()


def test_it_is_packed_and_shown_like_any_bundle(bundle: Bundle, tmp_path: Path) -> None:
    """The adapter alone is for `check`, and no part of what an app ships."""
    small = pack(bundle.path, tmp_path / "small")
    stages = Bundle.open(small.path).manifest.stages
    assert "adapter" in bundle.manifest.stages.keys() - stages.keys()
    prompt: dict[str, Any] = {"max_new_tokens": 12, "ignore_eos": True}
    got = free(small.path).generate(prompts()[0], **prompt)
    assert got.tokens == free(bundle.path).generate(prompts()[0], **prompt).tokens
    assert got.stats.drafted > 0
    page = json.dumps(bundle_page(bundle, "exit-2", print))
    assert "adapter-exit" in page
    assert "adapter.key" in page


def test_a_recipe_needs_the_exit_that_it_names(bundle: Bundle) -> None:
    with pytest.raises(GraftlineError, match="early-exit needs an exit here; build the bundle"):
        load(bundle.path, recipe="layer-skip")
    resources = free(bundle.path).resources
    bare = [replace(way, adapted=False) for way in resources.exits()]
    with pytest.raises(GraftlineError, match=r"kangaroo needs an adapter here; .* as Kangaroo's"):
        Kangaroo().equip(replace(resources, exits=lambda: bare))
