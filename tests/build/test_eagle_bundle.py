"""A bundle with an EAGLE head: exported and proven as a host of its own, and drafted with."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from graftline.build.check import check
from graftline.build.heads import own_passes
from graftline.build.optimize import optimize
from graftline.bundle.reader import Bundle
from graftline.errors import CheckpointError, GraftlineError
from graftline.head_notes import TapReading
from graftline.models.heads import Tap, open_head
from graftline.models.heads.eagle_shapes import eagle_shape
from graftline.recipe import recipe
from graftline.runtimes.drafter import Bid
from graftline.runtimes.drafting import draft_together
from graftline.runtimes.load import load
from graftline.tree import Tree
from tests.eagle_drafts import SIZES, DraftedSequence, head_files, lm_head
from tests.free_engine import free
from tests.markov_host import HIDDEN, VOCABULARY, MarkovCheckpoint, around, path_of
from tests.models.heads.reference_eagle import Eagle
from tests.models.heads.reference_layers import Sizes, drawn
from tests.tiny_checkpoints import WIDE

PROMPTS = [[5, 9, 2], [1] * 9, list(range(40, 57))]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("eagle")


@pytest.fixture(scope="module")
def markov(known_checkpoints: dict[Path, Any], folder: Path) -> MarkovCheckpoint:
    path = path_of(folder, "markov")
    known_checkpoints[path] = found = MarkovCheckpoint(path, WIDE)
    return found


@pytest.fixture(scope="module")
def right(markov: MarkovCheckpoint, folder: Path) -> Bundle:
    head = head_files(folder / "right", right=True)
    return optimize(markov.path, folder / "right.graft", head=str(head))


@pytest.fixture(scope="module", params=[1, 2])
def seeded(
    request: pytest.FixtureRequest, wide_checkpoint: Path, folder: Path
) -> tuple[Bundle, int]:
    """A head that knows nothing, over a host that nobody knows; and its layers."""
    layers = request.param
    head = head_files(folder / f"seeded-{layers}", layers)
    return optimize(wide_checkpoint, folder / f"seeded-{layers}.graft", head=str(head)), layers


def test_the_head_is_proven_as_a_host_of_its_own(seeded: tuple[Bundle, int]) -> None:
    manifest = seeded[0].manifest
    stage = manifest.stages["head.0"]
    assert (stage.role, stage.owner, stage.made_of) == ("engine", "head.0", "head.0.export")
    assert (stage.facts.kind, manifest.recipe) == ("draft-block", "eagle")
    laws = {(w.graft.partition("{")[0], w.law): w.status for w in manifest.laws
            if w.owner == "head.0"}  # fmt: skip
    wanted = [("canonicalize", "neutral"), ("kv-cache", "chunked"), ("tap", "tapped"),
              ("features", "opened"), ("head.0", "whole"), ("head.0", "taps")]  # fmt: skip
    assert {laws[row] for row in wanted} == {"held"}
    report = check(seeded[0].path)
    assert report.holds, [f for f in report.findings if not f.holds]


def test_a_right_head_is_accepted_to_its_end(right: Bundle) -> None:
    engine = free(right.path)
    for prompt in PROMPTS:
        result = engine.generate(prompt, max_new_tokens=41, ignore_eos=True)
        expected = [around(prompt[-1])]
        while len(expected) < 41:
            expected.append(around(expected[-1]))
        assert result.tokens == expected
        assert result.stats.mat > 7.0, "eight rows are drafted where nothing has a cost"


@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_tokens_are_plains_alone_and_in_a_ragged_batch(
    seeded: tuple[Bundle, int], temperature: float
) -> None:
    engine = free(seeded[0].path, prefix_cache=1 << 20)
    options: dict[str, Any] = {"max_new_tokens": 30, "ignore_eos": True}
    options |= {"temperature": temperature, "seed": 3}
    plain = [engine.generate(p, recipe="plain", **options).tokens for p in PROMPTS]
    alone = [engine.generate(p, **options) for p in PROMPTS]
    assert [r.tokens for r in alone] == plain
    assert sum(r.stats.drafted for r in alone) > 200
    if not temperature:
        batch = engine.generate(PROMPTS, **options)
        assert [r.tokens for r in batch] == plain


def test_a_prompt_with_explained_rows_and_a_long_one_are_seen_whole(right: Bundle) -> None:
    engine = free(right.path)
    told = engine.generate([1, 2, 3], max_new_tokens=20, ignore_eos=True, prompt_logprobs=1)
    assert told.stats.mat > 5.0
    long = engine.generate(list(range(200)) + [7] * 100, max_new_tokens=20, ignore_eos=True)
    assert long.stats.mat > 5.0, "a prompt of more than one chunk"


def test_a_head_in_int8_drafts_as_well(
    markov: MarkovCheckpoint, tmp_path: Path
) -> None:
    head = head_files(tmp_path / "head", right=True)
    bundle = optimize(markov.path, tmp_path / "int8.graft", head=f"{head}:int8")
    stage = bundle.manifest.stages["head.0"]
    assert (stage.dtype, bundle.manifest.dtype) == ("int8", "fp32")
    laws = {w.law: w.status for w in bundle.manifest.laws if w.graft == "head.0"}
    assert laws == {"whole": "held", "taps": "held"}
    result = free(bundle.path).generate([5, 9, 2], max_new_tokens=41, ignore_eos=True)
    assert result.tokens == [(2 + 7 * n) % VOCABULARY for n in range(1, 42)]
    assert result.stats.mat > 5.0


def rolled_out(
    bundle: Bundle, layers: int, tokens: list[int], features: torch.Tensor, count: int
) -> list[int]:
    """What the reference drafts behind `tokens` [N + 1], whose features [N, H] are given."""
    from graftline.runtimes.load import load as opened

    engine: Any = opened(bundle.path)
    table = torch.from_numpy(engine.resources.embedding().copy()).double()
    head = lm_head(bundle)
    module = drawn(Eagle(SIZES, layers)).double()
    made = features.double()
    ids = tokens[1:]
    for _ in range(count):
        out = module(table[ids][None], made[None])[0]
        made = torch.cat([made, out[-1:]])
        ids = [*ids, int((head @ out[-1]).argmax())]
    return ids[len(tokens) - 1 :]


def test_drafts_are_the_references_own_on_true_features_and_on_its_states(
    seeded: tuple[Bundle, int],
) -> None:
    """Three steps: after the prompt, after a draft of which two tokens stood, and after none did;
    two sequences of different lengths in the same calls."""
    bundle, layers = seeded
    engine: Any = load(bundle.path)
    random = np.random.default_rng(2)
    ones = [DraftedSequence(engine, random, length) for length in (6, 11)]
    for accepted in (0, 2, 0):
        for one in ones:
            one.choose(range(accepted + 1))
        trees = draft_together([one.drafter.draft(Bid.free(5)) for one in ones])
        for one, tree in zip(ones, trees, strict=True):
            assert isinstance(tree, Tree), tree
            one.tree = tree
            expected = rolled_out(bundle, layers, one.tokens, torch.from_numpy(one.features), 4)
            assert tree.token_list[1:] == expected


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        (replace(SIZES, hidden=16), "hidden_size is 16, but .* needs 32"),
        (replace(SIZES, vocabulary=300), "vocab_size is 300, but .* needs 260"),
    ],
)
def test_heads_of_another_model_are_refused_in_a_line(
    markov: MarkovCheckpoint, tmp_path: Path, sizes: Sizes, message: str
) -> None:
    head = head_files(tmp_path / "head", sizes=sizes)
    with pytest.raises(CheckpointError, match=message) as caught:
        optimize(markov.path, tmp_path / "out", head=str(head))
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_a_head_needs_its_tap_and_its_recipe(markov: MarkovCheckpoint, tmp_path: Path) -> None:
    head = str(head_files(tmp_path / "head"))
    with pytest.raises(GraftlineError, match=r"put tap\{layers=norm\} into --passes"):
        optimize(markov.path, tmp_path / "out", head=head, passes="kv-cache | select-rows")
    with pytest.raises(GraftlineError, match=r"eagle.*medusa|medusa.*eagle"):
        optimize(markov.path, tmp_path / "out", head=head, recipe="medusa")


def test_a_head_on_another_hidden_state_says_which(tmp_path: Path) -> None:
    """Its target's passes bring that out in place of the final norm's output."""
    head = open_head(head_files(tmp_path / "head"), taps=[Tap(-2)])
    assert eagle_shape(head) == eagle_shape(open_head(tmp_path / "head"))
    passes = own_passes(head, recipe("eagle"))
    assert passes == "kv-cache | select-rows | head-features | reduce-logits{topk=8}"
    assert own_passes(open_head(tmp_path / "head"), recipe("eagle")) is None
    assert head.reading(5, HIDDEN) == TapReading((3,), HIDDEN, 0.0)
