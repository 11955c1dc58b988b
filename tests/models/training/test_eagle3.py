"""EAGLE-3.1 in training is the published head: its formula, its files, its vocabulary."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import LlamaConfig

from graftline.errors import CheckpointError
from graftline.models.heads import Tap, open_head
from graftline.models.training.eagle3 import Eagle3, eagle3_layers
from graftline.models.training.frozen import FrozenHost
from graftline.models.training.packs import Pack, pack
from graftline.models.training.rows import Row, read_rows
from graftline.models.training.run import train
from graftline.models.training.vocabulary import DraftVocabulary
from tests.models.heads.reference_eagle3 import Eagle3 as Reference
from tests.models.heads.reference_eagle3 import Form
from tests.models.heads.reference_layers import Sizes
from tests.models.training.conftest import MakeJob
from tests.models.training.predictable import HIDDEN, VOCABULARY, write_host

SIZES = Sizes(hidden=HIDDEN, heads=4, kv_heads=2, head_size=8, mlp=48, vocabulary=VOCABULARY,
              layers=8, epsilon=LlamaConfig().rms_norm_eps, theta=10000.0)  # fmt: skip
IDS = torch.arange(2, VOCABULARY, 3)
TEXT = [3, 8, 7, 1, 9, 250, 4, 4, 0]
STEPS = 3


def silent(line: str) -> None:
    """Nobody reads."""


@pytest.fixture
def head(deep_folder: Path) -> tuple[FrozenHost, Eagle3]:
    """A head whose every weight counts."""
    host = FrozenHost(deep_folder, taps=eagle3_layers)
    found = Eagle3(host, DraftVocabulary(IDS, VOCABULARY, 0.98), TEXT)
    torch.manual_seed(2)
    with torch.no_grad():
        for parameter in found.module.parameters():
            if parameter.requires_grad:
                parameter.add_(0.2 * torch.randn_like(parameter))
    return host, found


def text(host: FrozenHost) -> Pack:
    """With taps that differ in every layer: those of this host do not."""
    states = host.states(TEXT)
    taps = np.random.default_rng(0).normal(size=states.taps.shape).astype(np.float16)
    return pack([Row(np.asarray(TEXT), replace(states, taps=taps), 2, 0, True)])


def test_roll_outs_are_the_references_steps(head: tuple[FrozenHost, Eagle3]) -> None:
    """What is published, read by the reference, drafts a chain by the same logits."""
    host, student = head
    form = Form(SIZES, taps=3, host_hidden=HIDDEN, drafted=len(IDS), fc_norm=True, norm_output=True)
    reference = Reference(form)
    tensors = dict(student.published().tensors)
    assert (tensors.pop("d2t") + torch.arange(len(IDS))).tolist() == IDS.tolist()
    assert tensors.pop("t2d").nonzero()[:, 0].tolist() == IDS.tolist()
    reference.load_state_dict({name: value.detach() for name, value in tensors.items()})
    one = text(host)
    with torch.no_grad():
        rolled = student.drafts(one)
        for begun in range(len(TEXT) - STEPS):
            x = reference.entry(one.taps[:, : begun + 1])
            for step in range(STEPS):
                place = begun + step
                tokens = host.embedding[one.ids[:, 1 : place + 2]]
                states, logits = reference.step(tokens, x)
                x = torch.cat([x, states[:, -1:]], dim=1)
                mine = student.scores(rolled[step][:, place], step, None)
                # sums of up to 3 H = 96 numbers in another order
                torch.testing.assert_close(mine, logits[:, -1], rtol=1e-4, atol=1e-4)
                some = IDS[[7, 0, 30]]
                torch.testing.assert_close(
                    student.scores(rolled[step][:, place], step, some), mine[:, [7, 0, 30]]
                )


def test_it_begins_as_the_host_reads_its_own_layer(deep_folder: Path) -> None:
    """As spread as what lm_head reads, channel by channel, and all of it of the last tap."""
    host = FrozenHost(deep_folder, taps=eagle3_layers)
    student = Eagle3(host, DraftVocabulary(IDS, VOCABULARY, 0.98), TEXT)
    read, taps = host.read(TEXT)
    with torch.no_grad():
        x = student.module.entry(taps)
        torch.testing.assert_close(x.square().mean(0), read.square().mean(0), rtol=1e-3, atol=1e-4)
        taps[:, : 2 * HIDDEN] = 7.0
        torch.testing.assert_close(student.module.entry(taps), x)


def test_the_lm_head_is_the_hosts_and_is_not_learned(head: tuple[FrozenHost, Eagle3]) -> None:
    host, student = head
    published = student.published()
    torch.testing.assert_close(published.tensors["lm_head.weight"], host.lm_head[IDS])
    learned = {n for n, p in student.module.named_parameters() if p.requires_grad}
    assert not any("embedding.weight" in n or "lm_head" in n for n in learned)
    assert published.notes == {
        "draft vocabulary": "86 of 260 tokens, which are 98.0 % of what the host says on held-out "
        "texts"
    }


def test_its_folder_opens_as_what_it_is(job: MakeJob) -> None:
    given = job("eagle3", steps=2)
    told: list[str] = []
    trained = train(given, told.append)
    opened = open_head(given.out)
    assert (opened.family, opened.taps) == ("eagle3", (Tap(1), Tap(3), Tap(4)))
    settings = opened.settings
    assert (settings.fc_norm, settings.norm_output, settings.draft_vocabulary) == (True, True, 64)
    assert any("speculators format" in line for line in opened.decided)
    assert opened.tensors["draft_ids"].numpy().tolist()[:12] == list(range(12))
    assert trained.notes["draft vocabulary"].startswith("64 of 260 tokens, which are 100.0 %")
    assert f"draft vocabulary: {trained.notes['draft vocabulary']}" in told
    assert "| draft vocabulary | 64 of 260 tokens" in (given.out / "README.md").read_text()
    config = json.loads((given.out / "config.json").read_text())
    assert config["eagle_aux_hidden_state_layer_ids"] == [2, 4, 5], "as they are entered"
    assert any("hidden states of" in line for line in told), "how much is said before"


def test_the_lm_head_can_be_left_to_the_host(job: MakeJob) -> None:
    given = job("eagle3", steps=1)
    train(replace(given, head=replace(given.head, verifier_lm_head=True)), silent)
    opened = open_head(given.out)
    assert not opened.settings.own_lm_head
    assert "lm_head.weight" not in opened.tensors
    assert json.loads((given.out / "config.json").read_text())["verifier_lm_head"] is True


def test_a_head_of_all_tokens_shares_lm_head(deep_folder: Path, tmp_path: Path) -> None:
    host = FrozenHost(deep_folder, taps=eagle3_layers)
    words = DraftVocabulary(torch.arange(VOCABULARY), VOCABULARY, 1.0)
    tensors = Eagle3(host, words, TEXT).published().tensors
    assert not {"d2t", "t2d", "lm_head.weight"} & set(tensors)


def test_taps_are_what_transformers_has_at_those_layers(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    folder = write_host(tmp_path / "host", num_hidden_layers=8)
    model = AutoModelForCausalLM.from_pretrained(folder)
    torch.manual_seed(6)
    with torch.no_grad():
        for layer in model.model.layers:
            torch.nn.init.normal_(layer.mlp.down_proj.weight, std=1.0)
    model.save_pretrained(folder)
    host = FrozenHost(folder, taps=eagle3_layers)
    assert host.tapped == (1, 3, 4)
    with torch.no_grad():
        out = model(torch.tensor([TEXT]), output_hidden_states=True)
    wanted = torch.cat([out.hidden_states[k][0] for k in (2, 4, 5)], dim=-1)
    # fp16 has 11 bits
    np.testing.assert_allclose(host.states(TEXT).taps, wanted, rtol=2**-10, atol=1e-5)
    one, other, _ = wanted.chunk(3, dim=-1)
    assert not torch.allclose(one, other, rtol=0.1, atol=0.01), "layers that can be told apart"
    plain = FrozenHost(folder)
    assert host.name == f"{plain.name}-1-3-4", "what is kept of both lies in files of their own"


def test_states_of_both_kinds_lie_beside_one_another(
    job: MakeJob, deep_folder: Path, cache: Path
) -> None:
    given = job("eagle3", steps=1)
    train(given, silent)
    train(replace(job("eagle", steps=1, out="other"), folder=deep_folder), silent)
    widths = {row.states.taps.shape[1] for row in read_rows([*(cache / "states").iterdir()])}
    assert widths == {HIDDEN, 3 * HIDDEN}


@pytest.mark.parametrize(("layers", "wanted"), [(7, (1, 2, 3)), (30, (1, 14, 26))])
def test_layers_are_those_of_eagle3s_own_code(layers: int, wanted: tuple[int, ...]) -> None:
    assert eagle3_layers(layers) == wanted


@pytest.mark.parametrize("layers", [2, 5, 6])
def test_a_host_too_shallow_is_refused(layers: int) -> None:
    with pytest.raises(CheckpointError, match=f"not three in a host of n = {layers}; train eagle"):
        eagle3_layers(layers)


def test_a_bias_that_the_files_cannot_hold_is_refused(deep_folder: Path) -> None:
    host = FrozenHost(deep_folder, taps=eagle3_layers)
    host.bias = torch.zeros(VOCABULARY)
    with pytest.raises(CheckpointError, match="for which the speculators format has no place"):
        Eagle3(host, DraftVocabulary(IDS, VOCABULARY, 1.0), TEXT)
