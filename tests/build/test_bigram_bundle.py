"""Medusa's heads with bigrams: read, put into their graph, proven, and drafting further."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from graftline.build.check import check
from graftline.build.optimize import optimize
from graftline.bundle.reader import Bundle
from graftline.bundle.store import load_graph
from graftline.errors import CheckpointError, GraftlineError
from graftline.evaluate import run
from graftline.models.heads import open_head
from graftline.models.heads.medusa import BIGRAMS, MedusaSettings
from tests.free_engine import answers_are_plains, free
from tests.markov_host import HIDDEN, VOCABULARY, MarkovCheckpoint, around, path_of
from tests.medusa_files import Tensors, bigrams, seeded, write_safe
from tests.tiny_checkpoints import WIDE

HEADS = 3
PROMPTS = [[5, 9, 2], [1] * 9, list(range(40, 57))]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("bigrams")


@pytest.fixture(scope="module")
def markov(known_checkpoints: dict[Path, Any], folder: Path) -> MarkovCheckpoint:
    """A host whose every token is known from the one before."""
    path = path_of(folder, "markov")
    known_checkpoints[path] = found = MarkovCheckpoint(path, WIDE)
    return found


def blind() -> Tensors:
    """Heads that know nothing of a state."""
    return {name: np.zeros_like(a) for name, a in seeded(HIDDEN, VOCABULARY, HEADS).items()}


def known(checkpoint: MarkovCheckpoint) -> Tensors:
    """The bigrams of that host."""
    value = checkpoint.host().model.graph.initializers["embed.weight"].const_value
    assert value is not None
    table = value.numpy() / np.linalg.norm(value.numpy(), axis=-1, keepdims=True)
    follows = np.zeros_like(table)
    follows[[around(token) for token in range(VOCABULARY)]] = table
    return {BIGRAMS[0]: 9.0 * table, BIGRAMS[1]: follows}


@pytest.fixture(scope="module")
def bundle(markov: MarkovCheckpoint, folder: Path) -> Bundle:
    head = write_safe(folder / "head", blind() | known(markov), markov_rank=HIDDEN)
    return optimize(markov.path, folder / "with.graft", head=str(head))


def test_the_stage_reads_the_token_behind_a_state(bundle: Bundle) -> None:
    manifest = bundle.manifest
    stage = manifest.stages["head.0"]
    assert manifest.recipe == "medusa"
    shapes = {p.role: p.shape for p in stage.ports if p.direction == "in"}
    assert shapes == {"hidden": ("B", "N", HIDDEN), "last": ("B", "N")}
    told = "3 heads of one layer, scored by an lm_head each and bigrams of rank 32"
    assert stage.facts.told() == told
    laws = {(w.graft.partition("{")[0], w.law): w.status for w in manifest.laws
            if w.owner == "head.0"}  # fmt: skip
    wanted = [("export", "formula"), ("draft-heads", "neutral"), ("draft-heads", "head-formula"),
              ("head.0", "whole"), ("head.0", "best")]  # fmt: skip
    assert {laws[row] for row in wanted} == {"held"}
    assert check(bundle.path).holds


def test_a_bigram_costs_a_row_of_a_table_and_one_small_product_a_head(bundle: Bundle) -> None:
    graph = load_graph(bundle.graph("head.0")).graph
    count = Counter(node.op_type for node in graph)
    # the first layers of all heads are one product, each lm_head one, each bigram one
    products = sum(number for op_type, number in count.items() if op_type.endswith("MatMul"))
    assert products == 1 + HEADS + HEADS
    assert count["ArgMax"] == HEADS - 1, "nobody follows the last head's token"


def test_each_head_follows_the_best_token_of_the_one_before(bundle: Bundle) -> None:
    model = load_graph(bundle.graph("head.0.export"))
    hidden = np.random.default_rng(0).standard_normal((1, 2, HIDDEN)).astype(np.float32)
    best = run(model, {"hidden": hidden, "last": np.asarray([[4, 90]])})["heads.logits"].argmax(-1)
    assert best[0].tolist() == [[11, 18, 25], [97, 104, 111]]


def test_heads_that_know_nothing_draft_by_bigrams_to_their_end(
    bundle: Bundle, markov: MarkovCheckpoint, folder: Path
) -> None:
    """Acceptance rises from nothing to everything where a text is its bigrams."""
    without = write_safe(folder / "blind", blind())
    plain = optimize(markov.path, folder / "blind.graft", head=str(without))
    for prompt in PROMPTS:
        options: dict[str, Any] = {"max_new_tokens": 41, "ignore_eos": True}
        result = free(bundle.path).generate(prompt, **options)
        assert result.tokens == [(prompt[-1] + 7 * n) % VOCABULARY for n in range(1, 42)]
        assert result.stats.mat > 3.5
        assert free(plain.path).generate(prompt, **options).stats.mat < 1.2
    results = free(bundle.path).generate(PROMPTS, max_new_tokens=30, ignore_eos=True)
    assert all(r.stats.mat > 3.5 for r in results), "each sequence by its own last token"


@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_tokens_are_plains(wide_checkpoint: Path, folder: Path, temperature: float) -> None:
    head = write_safe(folder / "seeded", seeded(HIDDEN, VOCABULARY) | bigrams(VOCABULARY))
    out = folder / "seeded.graft"
    if not out.exists():
        optimize(wide_checkpoint, out, head=str(head))
    answers_are_plains(out, PROMPTS, temperature)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"head": "HEAD:int8"}, "stay fp32; give .*head:fp32"),
        ({"head": "HEAD", "step": "fused"}, "fuse-heads needs heads that read nothing but a state"),
        ({"head": "HEAD", "passes": "kv-cache | tap{layers=norm} | draft-heads | reduce-logits"},
         "draft-heads needs heads that read nothing but a state"),
    ],
)  # fmt: skip
def test_what_does_not_go_together_is_refused(
    markov: MarkovCheckpoint, tmp_path: Path, options: dict[str, str], message: str
) -> None:
    head = write_safe(tmp_path / "head", blind() | bigrams(VOCABULARY))
    given: dict[str, Any] = {k: v.replace("HEAD", str(head)) for k, v in options.items()}
    with pytest.raises(GraftlineError, match=message):
        optimize(markov.path, tmp_path / "out", **given)
    assert not (tmp_path / "out").exists()


def test_files_that_do_not_belong_together_are_refused(tmp_path: Path) -> None:
    pair = bigrams(VOCABULARY)
    head = open_head(write_safe(tmp_path / "right", blind() | pair))
    assert head.settings == MedusaSettings(HEADS, 1, HIDDEN, VOCABULARY, False, 4)
    assert head.decided[-1].startswith("bigrams of rank 4")
    lone = {BIGRAMS[0]: pair[BIGRAMS[0]]}
    for number, (tensors, config, message) in enumerate((
        (pair, {"markov_rank": 8}, r"markov_rank=8, and 'markov_head.markov_w1.weight' is of rank"),
        (pair, {"markov_head_type": "rnn"}, "markov_head_type='rnn' reads states of a block"),
        (lone, {}, r"'markov_head.markov_w2.weight' is missing"),
        ({}, {"markov_rank": 4}, r"'markov_head.markov_w1.weight' is missing"),
        (bigrams(300), {}, ""),
    )):  # fmt: skip
        place = write_safe(tmp_path / str(number), blind() | tensors, **config)
        if message:
            with pytest.raises(CheckpointError, match=message):
                open_head(place)
        else:
            sizes = open_head(place).sizes
            assert [s.number for s in sizes if s.of == "vocabulary"] == [VOCABULARY, 300]
