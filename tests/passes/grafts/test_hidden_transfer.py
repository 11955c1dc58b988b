"""hidden-transfer: states of the tokens to come enter a host at a middle block."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx_ir as ir
import pytest

from graftline.errors import LawBroken, NotApplicable
from graftline.evaluate import Feed, run
from graftline.facts import decoder_facts
from graftline.head_notes import TransferNote
from graftline.models.decoder import TinyDecoder
from graftline.passes import GRAFTS, Pipeline
from graftline.passes.grafts.head_parts import HEADS
from graftline.passes.grafts.hidden_transfer import HiddenTransfer
from graftline.passes.grafts.kv_cache import empty_caches
from graftline.passes.grafts.transfers import WEIGHT, transfers_graph
from graftline.passes.graph.weights import tensor_of
from graftline.ports import by_role, read_ports
from tests.passes.tiny_hosts import HOSTS, decoder_feed, host
from tests.transfer_files import seeded

HIDDEN, VOCABULARY = 32, 61
TREES = "kv-cache | tree-mask"
DEEP = {name: replace(spec, layers=3) for name, spec in HOSTS.items() if name != "one-block"}
MATRICES = seeded(HIDDEN)


def carrying(
    passes: str = TREES, matrices: list[np.ndarray] | None = MATRICES, blocks: int = 2,
    spec: TinyDecoder = DEEP["grouped"],
) -> ir.Model:  # fmt: skip
    """A host after some passes, that carries such matrices."""
    model = host(spec)
    Pipeline.parse(f"anchors | {passes}" if passes else "anchors", GRAFTS).run(model)
    if matrices is not None:
        tensors = {WEIGHT.format(n): ir.tensor(m) for n, m in enumerate(matrices)}
        model.meta[HEADS] = transfers_graph(tensors, TransferNote(blocks, len(matrices)))
    return model


def fed(model: ir.Model, passes: str) -> Feed:
    """A feed of a graph that these passes have made of a host."""
    feed = decoder_feed(VOCABULARY)
    for graft in Pipeline.parse(passes, GRAFTS).grafts:
        feed = graft.neutral(feed, model)
    return feed


def test_before_and_after() -> None:
    before, after = carrying(), carrying()
    reports = Pipeline.parse("hidden-transfer", GRAFTS).run(after, fed(after, TREES))
    assert {"neutral", "trees", "pseudo-states"} <= {row.law for row in reports[0].laws}
    assert reports[0].added["MatMul"] == 3, "one small product for each token to come"
    assert reports[0].added["GatherND"] == 2, "the mask of the new rows, and the states"
    assert read_ports(before) == read_ports(after), "no input, no output"
    (logits,) = by_role(read_ports(after), "logits", "out")
    assert logits.shape[-1] == VOCABULARY, "no rule can choose a placeholder"
    facts = decoder_facts(before)
    assert decoder_facts(after) == replace(
        facts, placeholders=3, parameters=decoder_facts(after).parameters
    )
    assert decoder_facts(after).parameters - facts.parameters < 3 * HIDDEN**2 + 16


@pytest.mark.parametrize("spec", DEEP)
@pytest.mark.parametrize("passes", [TREES, "kv-cache"])
def test_laws_hold_in_trees_and_chains(spec: str, passes: str) -> None:
    model = carrying(passes, spec=DEEP[spec])
    reports = Pipeline.parse("hidden-transfer", GRAFTS).run(model, fed(model, passes))
    law = next(row for row in reports[0].laws if row.law == "pseudo-states")
    assert law.what.startswith("6 rows enter" if passes == "kv-cache" else "12 rows enter")


@pytest.mark.parametrize("passes", [TREES, "kv-cache"])
def test_a_placeholder_speaks_of_the_row_it_stands_behind_and_no_text_sees_it(passes: str) -> None:
    model = carrying(passes)
    Pipeline.parse("hidden-transfer", GRAFTS).run(model)
    feed = {name: array[:1] for name, array in fed(model, passes).items()}
    feed |= empty_caches(model, 1, 26)
    tokens = feed["tokens"]
    tokens[0, 9:12] = [VOCABULARY, VOCABULARY + 1, VOCABULARY + 2]
    one = run(model, feed)["logits"][0]
    before, behind = tokens.copy(), tokens.copy()
    before[0, 8], behind[0, 12] = (tokens[0, 8] + 1) % VOCABULARY, (tokens[0, 12] + 1) % VOCABULARY
    other = run(model, {**feed, "tokens": before})["logits"][0]
    np.testing.assert_array_equal(one[:8], other[:8])
    assert (np.abs(one[9:12] - other[9:12]).max(-1) > 1e-3).all(), "all three follow from row 8"
    later = run(model, {**feed, "tokens": behind})["logits"][0]
    np.testing.assert_array_equal(one[:12], later[:12])


def spoiled(model: ir.Model, number: int) -> None:
    held = model.graph.initializers[WEIGHT.format(number)]
    held.const_value = ir.tensor(tensor_of(held).numpy().T.copy(), name=held.name)


@pytest.mark.parametrize("passes", [TREES, "kv-cache"])
def test_a_wrong_matrix_is_caught(monkeypatch: pytest.MonkeyPatch, passes: str) -> None:
    real = HiddenTransfer.apply

    def wrong(graft: HiddenTransfer, model: ir.Model) -> None:
        real(graft, model)
        spoiled(model, 2)

    monkeypatch.setattr(HiddenTransfer, "apply", wrong)
    model = carrying(passes)
    with pytest.raises(LawBroken, match="pseudo-states"):
        Pipeline.parse("hidden-transfer", GRAFTS).run(model, fed(model, passes))


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (lambda: carrying(matrices=None), "hidden-transfer needs matrices that make states"),
        (lambda: carrying(""), "hidden-transfer needs a cache; put kv-cache before it"),
        (lambda: carrying(matrices=seeded(16)), "read 16 numbers, and the host's .* have 32"),
        (lambda: carrying(blocks=3), "enter behind 3 blocks, and this host has 3: they are"),
        (lambda: grafted(), "the graph has 3 placeholders already"),
    ],
)
def test_refusals(model: object, message: str) -> None:
    assert callable(model)
    with pytest.raises(NotApplicable, match=message):
        Pipeline.parse("hidden-transfer", GRAFTS).run(model())


def test_a_mask_that_comes_too_late_is_refused() -> None:
    """Else the rows of a tree would be looked for as those of a chain."""
    with pytest.raises(NotApplicable, match="by its mask; put tree-mask before it"):
        Pipeline.parse("hidden-transfer | tree-mask", GRAFTS).run(carrying("kv-cache"))


def grafted() -> ir.Model:
    model = carrying()
    Pipeline.parse("hidden-transfer", GRAFTS).run(model)
    return model
