"""A bundle whose prompts choose what their texts skip: each token is that of the definition."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from graftline.build.check import check
from graftline.build.optimize import optimize
from graftline.bundle.reader import Bundle
from graftline.errors import GraftlineError
from graftline.models.heads.router import BIAS, WEIGHT
from graftline.models.tiny import tiny
from graftline.models.training.frozen import FrozenHost
from graftline.models.training.router import Routing
from graftline.models.training.rows import Row
from graftline.runtimes.load import load
from graftline.runtimes.schedules.routed import Routed
from graftline.runtimes.study.perplexity import HELD_OUT
from tests.router_files import seeded, write_routers
from tests.tiny_checkpoints import write_tokenizer

BLOCKS, HIDDEN, LAYERS = 6, 64, (1, 2, 4)
ROUTES = ((1,), (1, 4), (2,))
NEW = 12
PROMPTS = [[7, 30, 101, 5, 66, 91 + number] for number in range(12)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("first")
    tiny("llama", place / "host", vocab_size=260, num_hidden_layers=BLOCKS, hidden_size=HIDDEN,
         max_position_embeddings=512)  # fmt: skip
    write_tokenizer(place / "host")
    write_routers(place / "head", seeded(LAYERS, HIDDEN), BLOCKS, ROUTES)
    return place


@pytest.fixture(scope="module")
def bundle(folder: Path) -> Bundle:
    return optimize(folder / "host", folder / "made.graft", head=str(folder / "head"))


@pytest.fixture(scope="module")
def student(folder: Path) -> Routing:
    """The definition: one pass of the host in torch, with gates behind the prompt."""
    host = FrozenHost(folder / "host")
    rows = [Row(np.asarray(PROMPTS[0]), host.states(PROMPTS[0]), 6, 0, True)]
    made = Routing(host, "+".join(map(str, LAYERS)), 0.1, rows)
    tensors = load_file(folder / "head" / "model.safetensors")
    with torch.no_grad():
        for place, layer in enumerate(LAYERS):
            made.module.weight[place] = tensors[WEIGHT.format(layer)][0]
            made.module.bias[place] = tensors[BIAS.format(layer)][0]
    return made


def free(student: Routing, prompt: list[int]) -> frozenset[int]:
    """The blocks that a prompt's routers let go."""
    with torch.no_grad():
        student.read(torch.tensor([prompt]), torch.tensor([len(prompt)]))
    return frozenset(b for b, needed in student.skipping.needed.items() if not needed[0])


def route_of(student: Routing, prompt: list[int]) -> frozenset[int]:
    """What a text skips: the longest route of which all blocks are let go."""
    able = [frozenset(route) for route in ROUTES if free(student, prompt).issuperset(route)]
    return max(able, key=len, default=frozenset())


def logits(student: Routing, prompt: list[int], ids: list[int]) -> np.ndarray:
    """[N, V] of a whole text, whose route skips blocks behind the prompt."""
    skipped, module = route_of(student, prompt), student.module
    kept = module.weight.clone(), module.bias.clone()
    with torch.no_grad():
        module.weight.zero_()
        module.bias.copy_(torch.tensor([-9.0 if b in skipped else 9.0 for b in LAYERS]))
        states = student.read(torch.tensor([ids]), torch.tensor([len(prompt)]))[0]
        made = student.scores(states, 0, None).numpy()
        module.weight.copy_(kept[0])
        module.bias.copy_(kept[1])
    return made


def generate(engine: Any, prompt: Any, **options: Any) -> Any:
    return engine.generate(prompt, max_new_tokens=NEW, ignore_eos=True, **options)


def test_tokens_are_those_of_the_definition_and_prompts_choose_apart(
    bundle: Bundle, student: Routing
) -> None:
    engine = load(bundle.path)
    answers = [generate(engine, prompt) for prompt in PROMPTS]
    for prompt, answer in zip(PROMPTS, answers, strict=True):
        rows = logits(student, prompt, [*prompt, *answer.tokens])[len(prompt) - 1 : -1]
        chosen = rows[np.arange(NEW), answer.tokens]
        assert (rows.max(axis=-1) - chosen < 1e-4).all(), prompt
        assert not answer.stats.lossless
    assert len({route_of(student, prompt) for prompt in PROMPTS}) >= 3, "whole, and routes"


def test_neighbours_and_kept_prompts_change_nothing(bundle: Bundle) -> None:
    """Sequences of several routes and recipes share steps; a prompt that was read before is not
    read again, and chooses all the same; what a route wrote is no other text's beginning."""
    engine = load(bundle.path)
    alone = [generate(engine, prompt).tokens for prompt in PROMPTS]
    assert [generate(engine, prompt).tokens for prompt in PROMPTS[:3]] == alone[:3]
    assert engine.stats().prefix_cache_hits >= 3 * len(PROMPTS[0])
    each: list[Any] = [
        {"recipe": "plain" if place % 5 == 4 else "first", "max_new_tokens": NEW - place % 4}
        for place in range(len(PROMPTS))
    ]
    found, plain = engine.generate(PROMPTS, ignore_eos=True, options=each), load(bundle.path)
    for place in range(4, len(PROMPTS), 5):
        alone[place] = generate(plain, PROMPTS[place], recipe="plain").tokens
    assert all(r.tokens == t[: len(r.tokens)] for r, t in zip(found, alone, strict=True))
    text = [*PROMPTS[0], *alone[0][:6]]
    assert (
        generate(engine, text, recipe="plain").tokens
        == generate(plain, text, recipe="plain").tokens
    )


def test_a_text_takes_the_longest_route_that_its_routers_let_go() -> None:
    needed = np.asarray([1, 0.1, 0.4, 1, 0.6], np.float32)
    assert Routed(0.5).choose(lambda: needed, [{1}, {1, 2}, {1, 2, 4}, {4}]) == 2
    assert Routed(0.7).choose(lambda: needed, [{1}, {1, 2}, {1, 2, 4}, {4}]) == 3
    few = np.asarray([1, 0.1, 0.4], np.float32)
    assert Routed(0.3).choose(lambda: few, [{1}, {1, 2}]) == 1
    assert Routed(0.05).choose(lambda: few, [{1}, {1, 2}]) == 0
    with pytest.raises(GraftlineError, match="threshold of 1 is no chance"):
        Routed(1.0).check()


def test_stages_laws_and_work(bundle: Bundle) -> None:
    manifest = bundle.manifest
    assert manifest.recipe == "first"
    routes = [f"routed-{number}" for number in (1, 2, 3)]
    assert [s for s in manifest.stages if s.startswith("routed")] == routes
    laws = {(row.graft, row.law): row.status for row in manifest.laws}
    assert "held" in {s for (graft, law), s in laws.items() if law == "routed"}
    assert laws["routed-3", "schedule"] == "held"
    for stage, skipped in zip(routes, ROUTES, strict=True):
        assert laws[stage, "route"] == laws[stage, "skipped"] == "held"
        ports = manifest.stages[stage].ports
        assert {p.layer for p in ports if p.role == "cache.key"} == set(range(BLOCKS)) - {*skipped}
        assert not [p for p in ports if p.role == "routers"]
    assert check(bundle.path).holds


def test_quality_is_that_of_the_route_that_the_text_chose(bundle: Bundle, student: Routing) -> None:
    engine = load(bundle.path)
    tokenizer = engine.tokenizer
    assert tokenizer is not None
    ids = tokenizer.encode_part(HELD_OUT.read_text(encoding="utf-8"))[:256]
    rows = logits(student, ids[:64], ids)[63:-1].astype(np.float64)
    chances = rows - np.log(np.exp(rows).sum(-1, keepdims=True))
    expected = np.exp(-chances[np.arange(192), ids[64:]].mean())
    found = engine.quality("first")
    assert found is not None
    assert found.perplexity == pytest.approx(expected, rel=1e-3)
    assert found.whole == 0.0, "its text is computed by the route that its prompt chose"


REFUSED: Mapping[str, tuple[dict[str, Any], str]] = {
    "head": ({"recipe": "first"}, "first needs a draft head"),
    "recipe": ({"recipe": "kangaroo", "head": "head", "exits": (2,)}, "takes no router head"),
    "other": ({"recipe": "lora-drop", "head": "head"}, "takes no router head"),
    "precision": ({"head": "head:int8"}, "routers read the target's own step, in the target's"),
    "passes": ({"head": "head", "passes": "kv-cache | select-rows"}, "put routers into"),
    "speed": ({"head": "head", "speedup": 1.5}, "first: .*no option 'speedup'"),
    "target": ({"head": "head", "target": "trt-rtx:sm89", "dtype": "fp16"}, "--target ort-cpu"),
    "blocks": ({"head": "other"}, "num_hidden_layers is 7, but .* needs 6"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_does_not_go_together_is_refused(folder: Path, tmp_path: Path, case: str) -> None:
    options, message = dict(REFUSED[case][0]), REFUSED[case][1]
    if case == "blocks":
        write_routers(folder / "other", seeded((2, 6), HIDDEN), 7, [[2]])
    if "head" in options:
        options["head"] = str(folder / options["head"])
    with pytest.raises(GraftlineError, match=message) as caught:
        optimize(folder / "host", tmp_path / "out", **options)
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []
