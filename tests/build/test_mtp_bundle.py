"""A bundle with an MTP layer that lies in its host's own checkpoint."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from graftline.build.check import check
from graftline.build.heads import check_recipe
from graftline.build.optimize import optimize
from graftline.bundle.reader import Bundle
from graftline.errors import CheckpointError, GraftlineError
from graftline.models.heads import open_head
from graftline.models.tiny import tiny
from graftline.recipe import recipe
from graftline.runtimes.drafter import Bid
from graftline.runtimes.drafters import make_drafter
from graftline.runtimes.drafting import draft_alone
from graftline.runtimes.load import load
from graftline.runtimes.verdict import Verdict
from graftline.tree import Tree
from tests.free_engine import free
from tests.models.heads.reference_eagle import Eagle
from tests.models.heads.reference_layers import Sizes, drawn, state, written
from tests.models.heads.reference_mtp import Mtp
from tests.tiny_checkpoints import write_tokenizer

SIZES = Sizes(hidden=48, heads=4, kv_heads=2, head_size=12, mlp=80, vocabulary=260, layers=3)


def layer() -> Any:
    """The MTP layer of the checkpoint: its norms are Qwen3's, over w."""
    sizes = Sizes(**{**vars(SIZES), "epsilon": 1e-6})
    return drawn(Mtp(sizes, 0.0, None, query_norm=True))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Qwen3 whose files also hold `mtp.*`, which transformers leaves out."""
    folder = tiny("qwen3", tmp_path_factory.mktemp("mtp") / "host", vocab_size=260)
    write_tokenizer(folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"mtp_num_hidden_layers": 1}))
    file = folder / "model.safetensors"
    own = {f"mtp.{name}": tensor for name, tensor in state(layer()).items()}
    save_file({**load_file(file), **own}, file, {"format": "pt"})
    return folder


@pytest.fixture(scope="module")
def made(checkpoint: Path) -> Bundle:
    return optimize(checkpoint, checkpoint.parent / "mtp.graft", head=str(checkpoint))


def test_the_layer_is_proven_as_a_host_of_its_own(made: Bundle) -> None:
    manifest = made.manifest
    stage = manifest.stages["head.0"]
    assert (manifest.recipe, stage.facts.kind) == ("mtp", "draft-block")
    laws = {(w.graft.partition("{")[0], w.law): w.status for w in manifest.laws
            if w.owner == "head.0"}  # fmt: skip
    wanted = [("canonicalize", "neutral"), ("kv-cache", "chunked"), ("tap", "tapped"),
              ("features", "opened"), ("head.0", "whole"), ("head.0", "taps")]  # fmt: skip
    assert {laws[row] for row in wanted} == {"held"}
    report = check(made.path)
    assert report.holds, [f for f in report.findings if not f.holds]


def test_drafts_behind_the_targets_own_text_are_the_references(
    made: Bundle, checkpoint: Path
) -> None:
    """What transformers' final norm gives, through the reference, drafts the very tokens that the
    engine drafts; then again behind a draft of which two tokens stood."""
    engine: Any = load(made.path)
    drafter: Any = make_drafter("eagle", {}, engine.resources)
    text = [5, 77, 13, 200, 41, 8, 99]
    session = engine.session
    session.reset(1)
    scores = session.read(0, np.asarray(text, np.int64), lambda states: drafter.see(0, states))
    drafter.start(text)
    chosen = int(scores.argmax[0, 0])
    drafter.observe(Tree.chain(text[-1:]), Verdict((0,), chosen), scores, 0)
    text.append(chosen)
    draft = draft_alone(drafter.draft(Bid.free(6))).token_list[1:]
    assert draft == rolled_out(checkpoint, text, 5)
    tree = Tree.chain([chosen, *draft])
    scores = session.score(tree.tokens[None])
    chosen = int(scores.argmax[0, 2])
    drafter.observe(tree, Verdict((0, 1, 2), chosen), scores, 0)
    text += [*draft[:2], chosen]
    assert draft_alone(drafter.draft(Bid.free(6))).token_list[1:] == rolled_out(checkpoint, text, 5)


def rolled_out(checkpoint: Path, text: list[int], count: int) -> list[int]:
    """What the reference drafts behind a text, over transformers' own hidden states."""
    from transformers import AutoModelForCausalLM

    host: Any = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32)
    with torch.no_grad():
        states = host.model(torch.tensor([text[:-1]])).last_hidden_state.double()
    table, lm_head = (m.weight.detach().double()
                      for m in (host.get_input_embeddings(), host.lm_head))  # fmt: skip
    module, ids = layer(), text[1:]
    for _ in range(count):
        fed_back, normed = module(table[ids][None], states)
        states = torch.cat([states, fed_back[:, -1:]], dim=1)
        ids = [*ids, int((lm_head @ normed[0, -1]).argmax())]
    return ids[len(text) - 1 :]


@pytest.mark.parametrize("temperature", [0.0, 0.9])
def test_tokens_are_plains(made: Bundle, temperature: float) -> None:
    engine = free(made.path)
    prompts = [[5, 9, 2], [1] * 9, list(range(40, 57))]
    options: dict[str, Any] = {
        "max_new_tokens": 24, "ignore_eos": True, "temperature": temperature, "seed": 4,
    }  # fmt: skip
    plain = [engine.generate(p, recipe="plain", **options).tokens for p in prompts]
    drafted = [engine.generate(p, **options) for p in prompts]
    assert [r.tokens for r in drafted] == plain
    assert sum(r.stats.drafted for r in drafted) > 200
    if not temperature:
        assert [r.tokens for r in engine.generate(prompts, **options)] == plain


def test_a_recipe_for_another_form_of_head_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    """It would not bring out what an MTP layer feeds back, or what a head of no norm has not."""
    words = r"eagle has no tap\{layers=-1\+norm\} for a head, .* use --recipe mtp"
    with pytest.raises(GraftlineError, match=words):
        check_recipe(open_head(checkpoint), recipe("eagle"))
    eagle = open_head(written(tmp_path, SIZES.config(), state(drawn(Eagle(SIZES)))))
    with pytest.raises(GraftlineError, match=r"mtp has no tap\{layers=-1\} for a head"):
        check_recipe(eagle, recipe("mtp"))


def test_a_checkpoint_without_such_a_layer_is_no_head(tmp_path: Path) -> None:
    folder = tiny("qwen3", tmp_path / "host", vocab_size=260)
    with pytest.raises(CheckpointError, match="not a draft head that graftline knows"):
        optimize(folder, tmp_path / "out", head=str(folder))
    assert not (tmp_path / "out").exists()


