"""Heads that read tokens too: their graphs are PyTorch's, and the pass names their best."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
import torch

from graftline.build.head_graph import head_graphs
from graftline.build.heads import own_passes, recipe_of
from graftline.errors import CheckpointError, LawBroken, NotApplicable
from graftline.evaluate import run
from graftline.head_notes import TapReading
from graftline.models.decoder import TinyDecoder
from graftline.models.heads import open_head
from graftline.passes import GRAFTS, Pipeline
from graftline.passes.anchors.anchors import block_outputs
from graftline.passes.grafts import draft_heads
from graftline.passes.grafts.head_parts import HEADS
from graftline.passes.graph.emit import Emit
from graftline.recipe import recipe
from tests.hydra_files import seeded_sequence, write_hydra
from tests.models.heads.reference_hydra import Stacks
from tests.models.heads.reference_layers import Sizes
from tests.passes.tiny_hosts import host

HIDDEN, VOCABULARY = 32, 61
SPEC = TinyDecoder(hidden=HIDDEN, vocabulary=VOCABULARY)


def anchored() -> ir.Model:
    model = host(SPEC)
    Pipeline.parse("anchors", GRAFTS).run(model)
    return model


@pytest.mark.parametrize("layers", [1, 3])
def test_every_head_is_what_pytorch_makes_of_it(tmp_path: Path, layers: int) -> None:
    tensors = seeded_sequence(HIDDEN, VOCABULARY, 3, layers)
    module = Stacks(Sizes(hidden=HIDDEN, vocabulary=VOCABULARY), 3, layers)
    module.load_state_dict({k: torch.from_numpy(v) for k, v in tensors.items()})
    target = anchored()
    graphs = head_graphs(open_head(write_hydra(tmp_path / "head", tensors)), target)
    random = np.random.default_rng(0)
    hidden = random.standard_normal((2, 4, HIDDEN)).astype(np.float32)
    tokens = random.integers(0, VOCABULARY, (2, 4, 3))
    table = target.graph.initializers["embed.weight"].const_value
    assert table is not None
    known = torch.from_numpy(table.numpy()[tokens])
    expected = module(torch.from_numpy(hidden), known)
    for number, (graph, want) in enumerate(zip(graphs, expected, strict=True)):
        feed = {"hidden": hidden, "tokens": tokens[..., : number + 1]}
        reports = Pipeline.parse("draft-heads{topk=5} | lower-ort", GRAFTS).run(graph, feed)
        assert "head-formula" in {row.law for row in reports[0].laws}
        got, wanted = run(graph, feed), want.detach().numpy()
        largest = np.abs(wanted).max()
        np.testing.assert_allclose(
            got["heads.logits"][:, :, 0], wanted, rtol=0, atol=1e-5 * largest
        )
        best = np.argsort(-got["heads.logits"], axis=-1)[..., :5]
        np.testing.assert_array_equal(got["heads.topk_ids"], best)


def test_heads_that_read_no_token_are_one_graph(tmp_path: Path) -> None:
    """As Medusa's, with a bias behind each lm_head."""
    tensors = seeded_sequence(HIDDEN, VOCABULARY, 3, 2, grounded=False)
    module = Stacks(Sizes(hidden=HIDDEN, vocabulary=VOCABULARY), 3, 2, grounded=False)
    module.load_state_dict({k: torch.from_numpy(v) for k, v in tensors.items()})
    head = open_head(write_hydra(tmp_path / "head", tensors, grounded_heads=False))
    (graph,) = head_graphs(head, anchored())
    assert recipe_of(head) == "medusa"
    hidden = np.random.default_rng(0).standard_normal((2, 4, HIDDEN)).astype(np.float32)
    states = torch.from_numpy(hidden)
    expected = module(states, torch.zeros(2, 4, 3, HIDDEN))
    feed = {"hidden": hidden}
    reports = Pipeline.parse("draft-heads{topk=5} | lower-ort", GRAFTS).run(graph, feed)
    assert "head-formula" in {row.law for row in reports[0].laws}
    got, wanted = run(graph, feed)["heads.logits"], torch.stack(expected, 2).detach().numpy()
    np.testing.assert_allclose(got, wanted, rtol=0, atol=1e-5 * np.abs(wanted).max())


@pytest.mark.parametrize("grounded", [True, False])
def test_heads_name_the_state_that_they_read(tmp_path: Path, grounded: bool) -> None:
    """`hidden_state_offset` 1 is what enters the last block of three; the recipe's passes bring it
    out, as it is."""
    tensors = seeded_sequence(HIDDEN, VOCABULARY, 2, grounded=grounded)
    files = write_hydra(tmp_path / "head", tensors, hidden_state_offset=1, grounded_heads=grounded)
    head, target = open_head(files), anchored()
    layers = len(block_outputs(target.graph))
    chosen = recipe(recipe_of(head))
    assert (own_passes(head, chosen) or "").count("head-features") == 1
    carried = head_graphs(head, target)[0]
    entered = block_outputs(target.graph)[layers - 2].name
    refused = target.clone()
    target.meta[HEADS] = refused.meta[HEADS] = carried
    why = "nothing but a state" if grounded else "these heads read another hidden state"
    with pytest.raises(NotApplicable, match=why):
        Pipeline.parse("tap{layers=norm} | draft-heads", GRAFTS).run(refused)
    reports = Pipeline.parse("head-features", GRAFTS).run(target)
    assert "layers" in {row.law for row in reports[0].laws if row.status == "held"}
    (made,) = [v for v in target.graph.outputs if v.name == "features"]
    assert made.producer().inputs[0].name == entered
    reading = TapReading.read(carried)
    assert reading == TapReading((layers - 2,), HIDDEN, 0.0)


def test_candidates_of_another_row_break_the_law(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    head = open_head(write_hydra(tmp_path / "head", seeded_sequence(HIDDEN, VOCABULARY)))
    graph = head_graphs(head, anchored())[1]

    class Reversed(draft_heads.Groups):
        def topk(self, k: int) -> tuple[ir.Value, ir.Value]:
            values, ids = super().topk(k)
            ends = [self.emit.const(f"turned.{n}", [n], np.int64) for n in (-1, -(1 << 40), 1)]
            return values, Emit(self.emit.graph, "x").op("Slice", [ids, *ends, ends[0]])

    monkeypatch.setattr(draft_heads, "Groups", Reversed)
    random = np.random.default_rng(0)
    feed = {"hidden": random.standard_normal((1, 4, HIDDEN)).astype(np.float32),
            "tokens": random.integers(0, VOCABULARY, (1, 4, 2))}  # fmt: skip
    with pytest.raises(LawBroken, match=r"'head-formula' at 'heads\.topk_ids'"):
        Pipeline.parse("draft-heads{topk=4}", GRAFTS).run(graph, feed)


def test_a_host_that_scales_its_embeddings_is_refused(tmp_path: Path) -> None:
    head = open_head(write_hydra(tmp_path / "head", seeded_sequence(HIDDEN, VOCABULARY)))
    target = anchored()
    look_up = next(n for n in target.graph if n.op_type == "Gather")
    users = list(look_up.outputs[0].uses())
    scaled = ir.node("Mul", [look_up.outputs[0], look_up.outputs[0]])
    target.graph.insert_after(look_up, scaled)
    for user, place in users:
        user.replace_input_with(place, scaled.outputs[0])
    with pytest.raises(CheckpointError, match="this host scales its own"):
        head_graphs(head, target)
