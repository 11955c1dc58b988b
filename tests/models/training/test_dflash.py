"""DFlash and DSpark in training are the published heads: formula, files, and what a block sees."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import LlamaConfig

from graftline.errors import CheckpointError, GraftlineError
from graftline.models.heads import Tap, open_head
from graftline.models.training.dflash import BLOCK, DFlash, block_mask
from graftline.models.training.dspark import DSpark
from graftline.models.training.eagle3 import eagle3_layers
from graftline.models.training.frozen import FrozenHost
from graftline.models.training.kinds import Head
from graftline.models.training.losses import Scored
from graftline.models.training.packs import pack
from graftline.models.training.rows import Row
from graftline.models.training.run import train
from graftline.models.training.student import loss_of, spoken
from graftline.models.training.vocabulary import DraftVocabulary
from tests.models.heads.reference_dflash import DFlash as Reference
from tests.models.heads.reference_dflash import Form
from tests.models.heads.reference_layers import Sizes
from tests.models.training.conftest import MakeJob
from tests.models.training.predictable import HIDDEN, VOCABULARY

SIZES = Sizes(hidden=HIDDEN, heads=4, kv_heads=2, head_size=8, mlp=48, vocabulary=VOCABULARY,
              layers=2, epsilon=LlamaConfig().rms_norm_eps, theta=10000.0)  # fmt: skip
IDS = torch.arange(2, VOCABULARY, 3)
WORDS = DraftVocabulary(IDS, VOCABULARY, 0.98)
TEXT = [3, 8, 7, 1, 9, 250, 4, 4, 0, 17, 30]
RANK = 5


def silent(line: str) -> None:
    """Nobody reads."""


@pytest.fixture(scope="module")
def host(deep_folder: Path) -> FrozenHost:
    return FrozenHost(deep_folder, taps=eagle3_layers)


def row(host: FrozenHost, ids: list[int] = TEXT, start: int = 2) -> Row:
    """With taps that differ in every layer: those of this host do not."""
    states = host.states(ids)
    taps = np.random.default_rng(0).normal(size=states.taps.shape).astype(np.float16)
    return Row(np.asarray(ids), replace(states, taps=taps), start, 0, True)


def student(host: FrozenHost, kind: str) -> DFlash:
    """A head whose every weight counts."""
    texts = [row(host), row(host, TEXT[::-1])]
    made = DSpark(host, WORDS, texts, rank=RANK) if kind == "dspark" else DFlash(host, WORDS, texts)
    torch.manual_seed(2)
    with torch.no_grad():
        for parameter in made.module.parameters():
            if parameter.requires_grad:
                parameter.add_(0.2 * torch.randn_like(parameter))
    return made


@pytest.mark.parametrize("kind", ["dflash", "dspark"])
@torch.no_grad()
def test_a_block_is_the_references(host: FrozenHost, kind: str) -> None:
    """What is published, read by the reference, scores the block behind every position alike."""
    made, spark = student(host, kind), kind == "dspark"
    form = Form(SIZES, block=BLOCK, markov="vanilla" if spark else "", rank=RANK, confidence=spark,
                drafted=len(IDS))  # fmt: skip
    reference, tensors = Reference(form), dict(made.published().tensors)
    assert (tensors.pop("d2t") + torch.arange(len(IDS))).tolist() == IDS.tolist()
    assert tensors.pop("t2d").nonzero()[:, 0].tolist() == IDS.tolist()
    lm_head = tensors.pop("lm_head.weight")
    reference.load_state_dict(tensors)
    one = pack([row(host)])
    drafts, some = made.drafts(one), IDS[[7, 0, 30]]
    assert len(drafts) == made.depths == BLOCK - (not spark)
    for place in range(1, len(TEXT) - 2):
        tokens = torch.tensor([TEXT[place + 1], *[made.mask] * (BLOCK - 1)])
        states = reference(host.embedding[tokens][None], one.taps[:, : place + 1])
        for depth in range(min(made.depths, len(TEXT) - 2 - place)):
            state = states[:, depth + (not spark)]
            wanted = state @ lm_head.T
            before = one.ids[:, place + 1 + depth]
            if spark:
                wanted = wanted + reference.markov_head(before[:, None], state[:, None])[:, 0]
            mine = made.scores(drafts[depth][:, place], depth, None)
            # sums of up to 3 H = 96 numbers in another order
            torch.testing.assert_close(mine, wanted, rtol=1e-4, atol=1e-4)
            part = made.scores(drafts[depth][:, place], depth, some)
            torch.testing.assert_close(part, mine[:, [7, 0, 30]])
            if isinstance(made, DSpark):
                known = torch.cat([state, reference.markov_head.markov_w1(before)], dim=-1)
                sure = made.sureness(drafts[depth][:, place])
                torch.testing.assert_close(
                    sure, reference.confidence_head.proj(known)[:, 0], rtol=1e-4, atol=1e-4
                )


@torch.no_grad()
def test_a_block_sees_the_text_up_to_its_place_and_no_other_block(host: FrozenHost) -> None:
    made, one, place = student(host, "dflash"), pack([row(host)]), 4
    whole = made.drafts(one)[1][0, place]

    def changed(taps: slice, token: int, asked: bool = False) -> torch.Tensor:
        other = replace(one, taps=one.taps.clone(), ids=one.ids.clone())
        other.taps[0, taps] += 1.0
        other.ids[0, token] = 77
        if asked:
            only = torch.zeros_like(one.ids, dtype=torch.bool)
            only[0, place] = True
            other = replace(other, asked=only)
        return made.drafts(other)[1][0, place]

    ahead = changed(slice(place + 1, None), place + 2)
    torch.testing.assert_close(ahead, whole)
    torch.testing.assert_close(changed(slice(place + 1, None), place + 2, asked=True), whole)
    assert not torch.allclose(changed(slice(place, place + 1), place + 2), whole, atol=1e-3)
    assert not torch.allclose(changed(slice(place + 1, None), place + 1), whole, atol=1e-3)


def test_all_but_the_hosts_matrices_is_learned(host: FrozenHost) -> None:
    made = student(host, "dspark")
    one = pack([row(host), row(host, TEXT[:7])]).asking(3, torch.Generator().manual_seed(0))
    assert one.asked is not None
    assert one.asked.sum(1).tolist() == [3, 3], "anchors in the answers"
    chosen = Scored.choose(spoken(one), IDS, VOCABULARY, VOCABULARY, torch.Generator())
    loss_of(made, one, chosen, cold=False).backward()
    for name, parameter in made.module.named_parameters():
        frozen = "embedding.weight" in name or "lm_head" in name
        assert parameter.requires_grad != frozen
        assert frozen or parameter.grad is not None, name
    torch.testing.assert_close(made.published().tensors["lm_head.weight"], host.lm_head[IDS])


@pytest.mark.parametrize("kind", ["dflash", "dspark"])
def test_its_folder_opens_as_what_it_is(job: MakeJob, kind: str) -> None:
    given = replace(job(kind, steps=2), head=Head(kind, block=5, rank=6))
    trained = train(given, silent)
    opened, spark = open_head(given.out), kind == "dspark"
    assert (opened.family, opened.taps) == (kind, (Tap(1), Tap(3), Tap(4)))
    settings = opened.settings
    assert (settings.block_size, settings.layers, settings.draft_vocabulary) == (5, 2, 64)
    assert settings.anchor_drafts == spark
    assert (settings.markov is not None, settings.confidence is not None) == (spark, spark)
    assert settings.markov is None or (settings.markov.rank, settings.markov.kind) == (6, "vanilla")
    assert settings.mask_token >= 12, "no token of the texts"
    assert opened.tensors["draft_ids"].numpy().tolist()[:12] == list(range(12))
    assert trained.found is not None
    assert len(trained.found.shares) == (5 if spark else 4)
    assert trained.notes["block"].startswith(f"5 rows, of which {5 if spark else 4} draft; mask")
    config = json.loads((given.out / "config.json").read_text())
    assert config["speculators_model_type"] == kind
    assert config["aux_hidden_state_layer_ids"] == [2, 4, 5], "as they are entered"


def test_a_markov_head_begins_as_the_bigrams_of_the_answers(job: MakeJob) -> None:
    """Its first look already knows what follows a token; the block itself knows nothing yet."""
    given = job("dspark", steps=1)
    looks = train(replace(given, head=Head("dspark", rank=12)), silent).course.looks
    reached, right = looks[0][3]
    assert right[0] > 0.9 * reached[0] > 0
    plain = train(job("dflash", steps=1, out="plain"), silent).course.looks
    reached, right = plain[0][3]
    assert right[0] < 0.2 * reached[0]


def test_the_mask_is_a_named_token_or_one_that_no_text_holds(
    host: FrozenHost, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    learned = [row(host)]
    lengths = host.embedding.norm(dim=-1)
    chosen = block_mask(host, learned)
    assert chosen not in TEXT
    assert abs(float(lengths[chosen] - lengths.median())) < 1e-6
    every = [row(host, list(range(VOCABULARY)))]
    with pytest.raises(CheckpointError, match="texts hold all 260 tokens, so that none is free"):
        block_mask(host, every)
    (tmp_path / "config.json").write_text('{"mask_token_id": 33}')
    monkeypatch.setattr(host, "folder", tmp_path)
    assert block_mask(host, every) == 33


def test_a_rank_beyond_the_tokens_is_refused(host: FrozenHost) -> None:
    with pytest.raises(GraftlineError, match="--rank 87: the head drafts 86 tokens"):
        DSpark(host, WORDS, [row(host)], rank=87)
