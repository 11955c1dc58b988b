"""Bigrams from counts: what is counted, what it is worth, and that heads draft further with it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from graftline.errors import CheckpointError, GraftlineError
from graftline.models.heads import open_head
from graftline.models.training.bigrams import expected_counts, factorised, information
from graftline.models.training.frozen import FrozenHost, States
from graftline.models.training.markov import Markov
from graftline.models.training.rows import Row
from graftline.models.training.run import train
from tests.medusa_files import bigrams, seeded, write_safe
from tests.models.training.conftest import MakeJob
from tests.models.training.predictable import HIDDEN, ROUND, VOCABULARY, following


def row(ids: Sequence[int], start: int, best: dict[int, float]) -> Row:
    """A text whose every position is followed by these tokens, with their chances."""
    many = len(ids), 1
    states = States(
        np.zeros((len(ids), 2), np.float16), np.tile(np.asarray(list(best), np.int32), many),
        np.tile(np.log(np.asarray(list(best.values()))).astype(np.float16), many),
    )  # fmt: skip
    return Row(np.asarray(ids, np.int32), states, start, 0, True)


def test_counts_are_what_the_host_expects_behind_each_token_of_an_answer() -> None:
    counts = expected_counts([row([5, 1, 2, 1, 3], 2, {1: 0.75, 2: 0.25})], 6).to_dense()
    wanted = torch.zeros(6, 6)
    wanted[1, 1], wanted[1, 2], wanted[2, 1], wanted[2, 2] = 1.5, 0.5, 0.75, 0.25
    torch.testing.assert_close(counts, wanted, rtol=1e-3, atol=0)


def test_information_is_what_a_pair_has_beyond_its_tokens() -> None:
    counts = torch.tensor([[8.0, 0.0, 1.0], [0.0, 8.0, 1.0], [0.5, 0.5, 1.0]]).to_sparse()
    found = information(counts.coalesce()).to_dense()
    joint, total = 8.0, 20.0
    wanted = np.log(joint * total / (9 * 8.5)) * joint / (joint + 1) * 8.5 / 9.5
    assert float(found[0, 0]) == pytest.approx(wanted, rel=1e-5)
    assert float(found[0, 1]) == 0.0, "never counted"
    assert float(found[0, 2]) == 0.0, "less than by chance"
    assert float(found[2, 2]) < float(found[0, 0]) * 2, "of what was hardly seen little is said"


def test_a_matrix_of_low_rank_is_found_again() -> None:
    torch.manual_seed(0)
    one, two = torch.randn(40, 3), torch.randn(40, 3)
    w1, w2 = factorised((one @ two.T).to_sparse().coalesce(), 3)
    torch.testing.assert_close(w1 @ w2.T, one @ two.T, rtol=1e-3, atol=1e-3)


def heads_of(folder: Path, **config: object) -> Path:
    """Heads that know nothing: all tokens are as likely."""
    tensors = {name: np.zeros_like(array) for name, array in seeded(HIDDEN, VOCABULARY).items()}
    return write_safe(folder, tensors, **config)


def test_heads_draft_further_where_a_text_has_bigrams(job: MakeJob, tmp_path: Path) -> None:
    """Every token is followed by one other: heads that know nothing of a state are right by what
    follows the token before."""
    given = job("markov")
    of = heads_of(tmp_path / "medusa")
    given = replace(
        given, head=replace(given.head, of=str(of), rank=16),
        settings=replace(given.settings, steps=1),
    )  # fmt: skip
    said: list[str] = []
    trained = train(given, said.append)
    assert trained.found is not None
    assert trained.found.shares == (1.0, 1.0, 1.0), "twelve tokens follow one another for ever"
    (told,) = (line for line in said if "tokens a step with" in line)
    assert told.startswith("bigrams: 4.00 tokens")
    assert float(told.split()[-2]) < 1.2, "without them"
    config = json.loads((given.out / "config.json").read_text())
    assert (config["markov_rank"], config["markov_head_type"]) == (16, "vanilla")
    head = open_head(given.out)
    assert (head.family, head.settings.markov, head.settings.shared) == ("medusa", 16, False)
    w1, w2 = (head.tensors[f"markov.{name}"].numpy() for name in ("w1", "w2"))
    best = (w1 @ w2.T).argmax(-1)
    assert best[:ROUND].tolist() == [following(token) for token in range(ROUND)]
    again = train(replace(given, out=tmp_path / "again"), said.append)
    files = [p / "medusa_lm_head.safetensors" for p in (trained.out, again.out)]
    assert files[0].read_bytes() == files[1].read_bytes()


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda f: write_safe(f, seeded(HIDDEN, VOCABULARY, layers=2)), CheckpointError,
         "bigrams are added to Medusa heads of one layer that have none"),
        (lambda f: write_safe(f, {**seeded(HIDDEN, VOCABULARY, own=False), **bigrams(VOCABULARY)}),
         CheckpointError, "bigrams are added to Medusa heads of one layer that have none"),
        (lambda f: write_safe(f, seeded(16, VOCABULARY)), CheckpointError,
         "heads over states of 16 numbers and 260 tokens, and host has 32 and 260: they are"),
    ],
)  # fmt: skip
def test_heads_that_cannot_have_them_are_refused(
    job: MakeJob, tmp_path: Path, make: object, error: type[Exception], message: str
) -> None:
    assert callable(make)
    given = job("markov", steps=1)
    given = replace(given, head=replace(given.head, of=str(make(tmp_path / "heads"))))
    with pytest.raises(error, match=message):
        train(given, lambda line: None)
    assert not given.out.exists()


def test_one_answer_cannot_be_counted_and_tried(job: MakeJob, tmp_path: Path) -> None:
    given = job("markov", steps=1)
    head = open_head(heads_of(tmp_path / "medusa"))
    host = FrozenHost(given.folder)
    ids = [1, 2, 3, 4]
    lone = [Row(np.asarray(ids), host.states(ids), 1, 0, True)]
    with pytest.raises(GraftlineError, match="there is one; give more prompts"):
        Markov(host, head, lone, 4, lambda line: None)


def test_counts_that_bring_nothing_are_said(job: MakeJob, tmp_path: Path) -> None:
    """Heads whose drafts no bigram can change."""
    tensors = seeded(HIDDEN, VOCABULARY)
    for name in [name for name in tensors if name.endswith(".1.weight")]:
        tensors[name] *= 1e4
    given = job("markov", steps=1)
    of = write_safe(tmp_path / "heads", tensors)
    given = replace(given, head=replace(given.head, of=str(of)))
    with pytest.raises(GraftlineError, match=r"bring nothing to .*heads .*; give more prompts"):
        train(given, lambda line: None)
    assert not given.out.exists()
