"""Heads as `train` writes them: an engine drafts with them what training's own forward drafts."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from graftline.build.optimize import optimize
from graftline.models.tiny import tiny
from graftline.models.training.chains import ChainStudent
from graftline.models.training.dspark import DSpark
from graftline.models.training.eagle import Eagle
from graftline.models.training.eagle3 import Eagle3, eagle3_layers
from graftline.models.training.frozen import FrozenHost
from graftline.models.training.head_folder import Story, write_head
from graftline.models.training.hidden_transfer import HiddenTransfer
from graftline.models.training.hydra import Hydra
from graftline.models.training.packs import pack
from graftline.models.training.ppd import Ppd
from graftline.models.training.rows import Row
from graftline.models.training.student import Student
from graftline.models.training.vocabulary import DraftVocabulary
from graftline.recipe import recipe
from graftline.runtimes.drafter import Bid, sees
from graftline.runtimes.drafters import make_drafter
from graftline.runtimes.drafting import draft_alone
from graftline.runtimes.load import load
from graftline.runtimes.verdict import Verdict
from graftline.tree import Tree
from tests.tiny_checkpoints import write_tokenizer

PROMPT = [5, 77, 13, 200, 41, 8, 99, 3]
DRAFTS = 3


def eagle3(folder: Path) -> tuple[FrozenHost, Student]:
    host = FrozenHost(folder, taps=eagle3_layers)
    return host, Eagle3(host, DraftVocabulary(torch.arange(4, 260, 2), 260, 0.97), PROMPT)


def dspark(folder: Path) -> tuple[FrozenHost, Student]:
    host = FrozenHost(folder, taps=eagle3_layers)
    words = DraftVocabulary(torch.arange(4, 260, 2), 260, 0.97)
    texts = ([*PROMPT, 9, 30], [7, 7, 4, 9, 2])
    rows = [Row(np.asarray(ids), host.states(ids), 2, 0, True) for ids in texts]
    return host, DSpark(host, words, rows)


def over_last(make: Callable[[FrozenHost], Student]) -> Callable[[Path], Any]:
    """A head that reads what lm_head does."""

    def made(folder: Path) -> tuple[FrozenHost, Student]:
        host = FrozenHost(folder)
        return host, make(host)

    return made


def lean(made: Callable[[Path], tuple[FrozenHost, Any]]) -> Callable[[Path], Any]:
    """The same without lm_head rows in its file."""

    def found(folder: Path) -> tuple[FrozenHost, Student]:
        host, student = made(folder)
        student.lm_head.written = False
        assert "lm_head.weight" not in student.published().tensors
        return host, student

    return found


KINDS: dict[str, Callable[[Path], tuple[FrozenHost, Student]]] = {
    "eagle-3": eagle3, "dspark": dspark, "eagle": over_last(Eagle),
    "hydra": over_last(lambda host: Hydra(host, DRAFTS)),
    "eagle-3 lean": lean(eagle3), "dspark lean": lean(dspark),
}  # fmt: skip

CHAINS: dict[str, Callable[[FrozenHost], ChainStudent]] = {
    "ppd": lambda host: Ppd(host, DRAFTS),
    "hidden-transfer": lambda host: HiddenTransfer(host, DRAFTS, 3),
}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of eight layers, with numbers that fp16 holds: heads have copies of some."""
    from transformers import AutoModelForCausalLM

    folder = tmp_path_factory.mktemp("trained") / "host"
    tiny("llama", folder, vocab_size=260, num_hidden_layers=8)
    AutoModelForCausalLM.from_pretrained(folder).half().save_pretrained(folder)
    write_tokenizer(folder)
    return folder


def unsettled(student: Student) -> None:
    """Change every number that is learned, to one that fp16 holds."""
    torch.manual_seed(4)
    with torch.no_grad():
        for p in student.module.parameters():
            if p.requires_grad:
                p.copy_((p + 0.1 * torch.randn_like(p)).half())


@torch.no_grad()
def foreseen(host: FrozenHost, student: Student, chosen: int) -> list[int]:
    """What training drafts behind the prompt and `chosen`, a token at a time."""
    ids = [*PROMPT, chosen]
    for depth in range(DRAFTS):
        row = Row(np.asarray([*ids, 0]), host.states([*ids, 0]), 1, 0, True)
        states = student.drafts(pack([row]))[depth]
        at = len(PROMPT) - 1 + student.place(depth)
        logits = student.scores(states[:, at], depth, None)
        ids.append(int(student.drafted[logits[0].argmax()]))
    return ids[len(PROMPT) + 1 :]


def drafted(engine: Any, name: str) -> tuple[int, list[int]]:
    """The token that the engine chooses behind the prompt, and the chain behind it."""
    options = {"width": 1} if name == "hydra" else {}
    drafter: Any = make_drafter(recipe(name).drafter, options, engine.resources)
    engine.session.reset(1)
    seen = [0]

    def show(states: Any) -> None:
        drafter.see(seen[0], states)
        seen[0] += len(next(iter(states.values())))

    given = (show,) if sees(drafter) else ()
    scores = engine.session.read(0, np.asarray(PROMPT, np.int64), *given)
    drafter.start(PROMPT)
    chosen = int(scores.argmax[0, 0])
    drafter.observe(Tree.chain(PROMPT[-1:]), Verdict((0,), chosen), scores, 0)
    tree = draft_alone(drafter.draft(Bid.free(DRAFTS + 1)))
    assert tree.parent_list == list(range(-1, DRAFTS)), "a chain"
    return chosen, tree.token_list[1:]


@pytest.mark.parametrize("name", KINDS)
def test_an_engine_drafts_what_training_foresees(
    checkpoint: Path, tmp_path: Path, name: str
) -> None:
    host, student = KINDS[name](checkpoint)
    name = name.split()[0]
    unsettled(student)
    story = Story("run", "host", "graftline train", "data", 0, 1, "test", 0.0, None)
    write_head(tmp_path / "head", student.published(), story)
    bundle = optimize(checkpoint, tmp_path / "out.graft", head=str(tmp_path / "head"))
    assert bundle.manifest.recipe == name
    chosen, tokens = drafted(load(bundle.path), name)
    wanted = foreseen(host, student, chosen)
    assert tokens == wanted
    assert len(set(wanted)) > 1, "drafts that tell places apart"


@pytest.mark.parametrize("name", CHAINS)
def test_an_engine_foretells_at_its_placeholders_what_training_does(
    checkpoint: Path, tmp_path: Path, name: str
) -> None:
    host = FrozenHost(checkpoint)
    student = CHAINS[name](host)
    unsettled(student)
    story = Story("run", "host", "graftline train", "data", 0, 1, "test", 0.0, None)
    write_head(tmp_path / "head", student.published(), story)
    bundle = optimize(checkpoint, tmp_path / "out.graft", head=str(tmp_path / "head"))
    assert bundle.manifest.recipe == name
    session: Any = load(bundle.path).session
    first = session.facts.vocabulary
    session.reset(1)
    chosen = int(session.read(0, np.asarray(PROMPT, np.int64)).argmax[0, 0])
    rows = [chosen, *range(first, first + DRAFTS)]
    chain = session.score(np.asarray([rows], np.int64)).logits[0, 1:].copy()
    mask = np.eye(5, dtype=np.bool_) | np.tri(5, 5, -1, dtype=np.bool_)
    mask[2:, 1] = False  # a token of text beside the chain
    rows.insert(1, 7)
    tree = session.score(np.asarray([rows], np.int64), np.asarray([[0, 1, 1, 2, 3]]), mask[None])
    ids = torch.tensor([*PROMPT, chosen])
    with torch.no_grad():
        states = student.read(ids, torch.tensor([len(PROMPT)]))[1][0]
        wanted = student.scores(states, 0, None).numpy()
    # fp32 sums over eight layers, in another order
    np.testing.assert_allclose(chain, wanted, rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(tree.logits[0, 2:], wanted, rtol=1e-3, atol=1e-3)
    assert np.abs(np.diff(wanted, axis=0)).max(-1).min() > 0.01, "rows that tell places apart"
