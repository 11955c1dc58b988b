"""A bundle with heads that read one another's tokens: a stage of each, proven and decoded with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from graftline.build.check import check
from graftline.build.optimize import optimize
from graftline.bundle.reader import Bundle
from graftline.errors import GraftlineError
from graftline.runtimes.load import load
from tests.free_engine import free
from tests.hydra_files import seeded_sequence, write_hydra
from tests.markov_host import HIDDEN, VOCABULARY, MarkovCheckpoint, path_of, right_sequence
from tests.medusa_files import seeded, write_safe
from tests.tiny_checkpoints import WIDE

PROMPTS = [[5, 9, 2], [1] * 9, list(range(40, 57))]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("hydra")


@pytest.fixture(scope="module")
def markov(known_checkpoints: dict[Path, Any], folder: Path) -> MarkovCheckpoint:
    path = path_of(folder, "markov")
    known_checkpoints[path] = found = MarkovCheckpoint(path, WIDE)
    return found


@pytest.fixture(scope="module")
def right(markov: MarkovCheckpoint, folder: Path) -> Bundle:
    """Heads that know what comes by the last token they read."""
    head = write_hydra(folder / "right", right_sequence(markov))
    return optimize(markov.path, folder / "right.graft", head=str(head))


def test_every_head_is_a_stage(right: Bundle) -> None:
    manifest = right.manifest
    assert manifest.recipe == "hydra"
    assert [o for o in manifest.engines() if o != "target"] == ["head.0", "head.1", "head.2"]
    for number in range(3):
        owner = f"head.{number}"
        stage = manifest.stages[owner]
        ports = {p.role: (p.shape, p.owner) for p in stage.ports}
        assert ports["tokens"] == (("B", "N", number + 1), owner)
        assert ports["heads.topk_ids"] == (("B", "N", 1, 10), owner)
        laws = {(w.graft.partition("{")[0], w.law): w.status for w in manifest.laws
                if w.owner == owner}  # fmt: skip
        wanted = [("export", "formula"), ("draft-heads", "head-formula"), (owner, "whole"),
                  (owner, "best")]  # fmt: skip
        assert {laws[row] for row in wanted} == {"held"}
    assert check(right.path).holds


def test_right_heads_are_accepted_to_their_end(right: Bundle) -> None:
    engine = free(right.path)
    for prompt in PROMPTS:
        result = engine.generate(prompt, max_new_tokens=41, ignore_eos=True)
        assert result.tokens == [(prompt[-1] + 7 * n) % VOCABULARY for n in range(1, 42)]
        assert result.stats.mat > 3.5
    batch = engine.generate(PROMPTS, max_new_tokens=41, ignore_eos=True)
    assert [r.tokens[-1] for r in batch] == [(p[-1] + 7 * 41) % VOCABULARY for p in PROMPTS]
    assert min(r.stats.mat for r in batch) > 3.0


@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_tokens_are_plains(wide_checkpoint: Path, folder: Path, temperature: float) -> None:
    head = write_hydra(folder / "seeded", seeded_sequence(HIDDEN, VOCABULARY, layers=2))
    out = folder / f"seeded-{temperature}.graft"
    engine = free(optimize(wide_checkpoint, out, head=str(head)).path)
    options: dict[str, Any] = {"max_new_tokens": 30, "ignore_eos": True}
    options |= {"temperature": temperature, "seed": 3}
    plain = [engine.generate(p, recipe="plain", **options).tokens for p in PROMPTS]
    alone = [engine.generate(p, **options) for p in PROMPTS]
    assert [r.tokens for r in alone] == plain
    assert sum(r.stats.drafted for r in alone) > 200
    if not temperature:
        assert [r.tokens for r in engine.generate(PROMPTS, **options)] == plain


def test_recipes_and_heads_of_different_families_are_refused(
    markov: MarkovCheckpoint, right: Bundle, tmp_path: Path
) -> None:
    hydra = write_hydra(tmp_path / "hydra", right_sequence(markov))
    medusa = write_safe(tmp_path / "medusa", seeded(HIDDEN, VOCABULARY))
    out = tmp_path / "out"
    with pytest.raises(GraftlineError, match=r"medusa drafts with medusa heads, and .* hydra"):
        optimize(markov.path, out, head=str(hydra), recipe="medusa")
    with pytest.raises(GraftlineError, match=r"hydra drafts with hydra heads, and .* medusa"):
        optimize(markov.path, out, head=str(medusa), recipe="hydra")
    with pytest.raises(GraftlineError, match="medusa cannot draft with the heads of this bundle"):
        load(right.path, recipe="medusa")
    passes = "kv-cache | tap{layers=norm} | draft-heads | reduce-logits"
    with pytest.raises(GraftlineError, match="needs heads that read nothing but a state"):
        optimize(markov.path, out, head=str(hydra), passes=passes)
    assert not out.exists()


def test_heads_that_are_not_built_yet_say_so(markov: MarkovCheckpoint, tmp_path: Path) -> None:
    tensors = right_sequence(markov)
    offset = write_hydra(tmp_path / "offset", tensors, hidden_state_offset=1)
    with pytest.raises(GraftlineError, match="only heads on the final norm's output are built"):
        optimize(markov.path, tmp_path / "out", head=str(offset))
    loose = {k.replace("res_connection", "x"): v[:, :HIDDEN] if v.ndim == 2 and "mlp" in k else v
             for k, v in tensors.items()}  # fmt: skip
    loose = {k: v for k, v in loose.items() if ".x." not in k}
    apart = write_hydra(tmp_path / "apart", loose, grounded_heads=False)
    with pytest.raises(GraftlineError, match="hydra heads of this kind are read and not built yet"):
        optimize(markov.path, tmp_path / "out", head=str(apart))
