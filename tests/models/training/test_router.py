"""Routers in training: a text is read as the recipe decodes it, and skips what costs least."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from graftline.commands.training import Command
from graftline.errors import CheckpointError, GraftlineError
from graftline.models.heads import open_head
from graftline.models.tiny import tiny
from graftline.models.training import router
from graftline.models.training.frozen import FrozenHost
from graftline.models.training.kinds import Head
from graftline.models.training.losses import Scored
from graftline.models.training.packs import pack
from graftline.models.training.router import Routing, covering, skippable
from graftline.models.training.rows import Row
from graftline.models.training.run import train
from graftline.models.training.student import loss_of
from tests.models.training.conftest import MakeJob

TEXT = [3, 8, 7, 1, 9, 250, 4, 4, 0, 17, 30]
START = 4


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> FrozenHost:
    place = tmp_path_factory.mktemp("router") / "host"
    tiny("llama", place, vocab_size=260, num_hidden_layers=4, hidden_size=64)
    return FrozenHost(place)


def row(host: FrozenHost, ids: list[int], start: int = START) -> Row:
    return Row(np.asarray(ids), host.states(ids), start, 0, True)


@pytest.fixture
def student(host: FrozenHost) -> Routing:
    return Routing(host, "1-2", 0.25, [row(host, TEXT)])


def sure(student: Routing, *logits: float) -> None:
    with torch.no_grad():
        student.module.bias.copy_(torch.tensor(logits))


def test_the_prompt_is_read_whole_and_a_skipped_block_is_the_identity_behind_it(
    student: Routing, host: FrozenHost
) -> None:
    streams: list[torch.Tensor] = []

    def note(block: object, given: tuple[torch.Tensor, ...]) -> None:
        streams.append(given[0][0])

    hooks = [host.blocks[layer].register_forward_pre_hook(note) for layer in (1, 2)]
    sure(student, -3.0, 3.0)
    with torch.no_grad():
        made = student.read(torch.tensor([TEXT]), torch.tensor([START]))[0]
    for hook in hooks:
        hook.remove()
    entered, left = streams
    assert torch.equal(entered[START:], left[START:])
    assert not torch.isclose(entered[:START], left[:START]).all(-1).any()
    whole = host.read(TEXT)[0]
    gaps = (made - whole).abs().amax(-1)
    assert (gaps[:START] < 1e-4).all()
    assert (gaps[START:] > 1e-2).all()


def test_a_router_reads_the_end_of_its_texts_prompt(student: Routing, host: FrozenHost) -> None:
    """What stands behind it says nothing; texts of a pack are apart."""
    torch.nn.init.normal_(student.module.weight)
    other = [*TEXT[:START], *reversed(TEXT[START:])]
    longer = [*TEXT[:3], 5, 6, *TEXT[3:]]
    ids = torch.tensor([[*TEXT, 0, 0], [*other, 0, 0], longer])
    with torch.no_grad():
        student.read(ids, torch.tensor([START, START, START + 2]))
    needed = [student.skipping.needed[layer].clone() for layer in (1, 2)]
    chances = [student.module(host_stream(host, text, start, layer), place)
               for place, layer in enumerate((1, 2))
               for text, start in ((TEXT, START), (longer, START + 2))]  # fmt: skip
    for place in (0, 1):
        assert needed[place].tolist() == [
            float(chances[2 * place] >= 0.5), float(chances[2 * place] >= 0.5),
            float(chances[2 * place + 1] >= 0.5),
        ]  # fmt: skip


def host_stream(host: FrozenHost, ids: list[int], start: int, layer: int) -> torch.Tensor:
    """[1, H]: what enters a block at the last row of a prompt."""
    found: list[torch.Tensor] = []
    hook = host.blocks[layer].register_forward_pre_hook(lambda block, given: found.append(given[0]))
    host.read(ids)
    hook.remove()
    return found[0][:, start - 1]


def test_routers_alone_are_learned_and_what_is_skipped_too_little_has_a_price(
    student: Routing, host: FrozenHost
) -> None:
    one = pack([row(host, TEXT), row(host, TEXT[:7])])
    chosen = Scored.choose(one.ids.reshape(-1), student.drafted, 260, 260, torch.Generator())
    loss = loss_of(student, one, chosen, cold=False)
    loss.backward()
    assert float(student.price().detach()) == pytest.approx(router.PRESSURE * 0.25)
    assert float(loss.detach()) > float(student.price().detach())
    learned = list(student.module.parameters())
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in learned)
    assert not any(p.requires_grad for p in student.decoder.parameters())
    sure(student, 3.0, -3.0)
    with torch.no_grad():
        student.drafts(one)
    assert float(student.price()) == 0, "one block of four is a quarter"


def test_routes_are_those_by_which_texts_skip_most() -> None:
    texts = [frozenset({1, 2, 3})] * 2 + [frozenset({1, 2, 4})] * 2 + [frozenset({5}), frozenset()]
    assert covering(texts, 1) == [frozenset({1, 2})], "what four texts have in common: 8 in all"
    assert covering(texts, 9) == [
        frozenset({1, 2}), frozenset({1, 2, 3}), frozenset({1, 2, 4}), frozenset({5}),
    ]  # fmt: skip
    assert covering([frozenset()], 4) == []


def test_training_teaches_and_writes_its_files(job: MakeJob, host: FrozenHost) -> None:
    given = job("router", steps=30, tokens=256, rate=3e-2)
    given = replace(given, folder=host.folder, head=Head("router", layers="1-3", share=0.25))
    trained = train(given, lambda line: None)
    assert trained.family == "FiRST"
    assert "blocks of a text by" in trained.notes["skips"]
    head = open_head(given.out)
    assert head.settings.layers == (1, 2, 3)
    assert all(set(route) <= {1, 2, 3} for route in head.settings.routes)
    config = json.loads((given.out / "config.json").read_text())
    assert config["num_hidden_layers"] == 4
    best = trained.course.looks[trained.course.best]
    assert best[0] > 0, "weights that skip nothing are not the best"
    again = train(replace(given, out=given.out.with_name("again")), lambda line: None)
    files = [(one.out / "model.safetensors").read_bytes() for one in (trained, again)]
    assert files[0] == files[1], "the same seed gives the same bytes"


def test_layers_texts_and_hosts_that_cannot_be_are_refused(
    host: FrozenHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert skippable("", 6, 0.5) == (1, 2, 3, 4)
    for layers, share, message in (
        ("0-2", 0.2, "block 0 is always computed"), ("9", 0.2, "no block 9"),
        ("1", 0.5, "--share 0.5: of 4 blocks 1 may be skipped"),
    ):  # fmt: skip
        with pytest.raises(GraftlineError, match=message):
            skippable(layers, 4, share)
    with pytest.raises(GraftlineError, match="routers read prompts"):
        Routing(host, "1", 0.25, [row(host, TEXT, 1)])
    for given, message in (
        ({"text": True}, "--text: routers read prompts"),
        ({"share": 1.5}, "--share 1.5: use a share"),
        ({"rank": 4}, "--rank is for lora-drop"),
    ):  # fmt: skip
        with pytest.raises(GraftlineError, match=message):
            Command("router", "host", Path("p"), Path("o"), **given).check()
    with pytest.raises(GraftlineError, match="no prompt skips a block yet"):
        Routing(host, "1", 0.25, [row(host, TEXT)]).published()
    nothing = SimpleNamespace(last_hidden_state=torch.zeros(1, 12, 64))
    monkeypatch.setattr(router, "plain_decoder", lambda host, what: lambda **given: nothing)
    with pytest.raises(CheckpointError, match="blocks are not run as they are meant"):
        Routing(host, "1", 0.25, [row(host, TEXT)])
