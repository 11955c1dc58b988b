"""placeholders: ids behind the vocabulary, whose embeddings are a head's rows."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx_ir as ir
import pytest

from graftline.errors import LawBroken, NotApplicable
from graftline.evaluate import Array, run
from graftline.facts import decoder_facts, write_facts
from graftline.models.decoder import TinyDecoder
from graftline.passes import GRAFTS, Pipeline
from graftline.passes.anchors.anchors import with_role
from graftline.passes.grafts.head_parts import HEADS
from graftline.passes.grafts.placeholders import ROWS, Placeholders, carried, embeddings_graph
from graftline.passes.graph.emit import Emit
from graftline.passes.graph.ports import input_of
from graftline.passes.graph.weights import tensor_of
from graftline.ports import by_role, read_ports
from tests.passes.tiny_hosts import HOSTS, decoder_feed, host
from tests.ppd_files import seeded

HIDDEN, VOCABULARY = 32, 61
ROWS_OF = seeded(HIDDEN)


def carrying(rows: Array | None = ROWS_OF, spec: TinyDecoder = HOSTS["grouped"]) -> ir.Model:
    """An anchored host that carries a head of these rows."""
    model = host(spec)
    Pipeline.parse("anchors", GRAFTS).run(model)
    if rows is not None:
        model.meta[HEADS] = embeddings_graph(rows)
    return model


def grafted(text: str = "placeholders", spec: TinyDecoder = HOSTS["grouped"]) -> ir.Model:
    model = carrying(spec=spec)
    Pipeline.parse(text, GRAFTS).run(model)
    return model


def test_before_and_after() -> None:
    before, after = carrying(), carrying()
    reports = Pipeline.parse("placeholders", GRAFTS).run(after, decoder_feed(VOCABULARY))
    assert {"neutral", "placeholder-rows"} <= {row.law for row in reports[0].laws}
    assert reports[0].added == {"GreaterOrEqual": 1, "Where": 3, "Sub": 1, "Unsqueeze": 1,
                                "Gather": 1}  # fmt: skip
    assert read_ports(before) == read_ports(after), "no input, no output"
    (logits,) = by_role(read_ports(after), "logits", "out")
    assert logits.shape[-1] == VOCABULARY, "no rule can choose a placeholder"
    assert decoder_facts(after) == replace(decoder_facts(before), placeholders=3)
    added = set(after.graph.initializers) - set(before.graph.initializers)
    sizes = [tensor_of(after.graph.initializers[name]).size for name in added]
    assert sorted(sizes) == [1, 1, 1, 1, 3 * HIDDEN], "the host's table is not copied"


@pytest.mark.parametrize("spec", HOSTS)
def test_a_row_of_the_table_as_a_placeholder_is_that_token(spec: str) -> None:
    """With the embedding of token 7 as its row, a placeholder is read as the token 7."""
    model = carrying(None, HOSTS[spec])
    table = tensor_of(with_role(model.graph, "embedding")[0].inputs[0]).numpy()  # type: ignore[arg-type]
    model.meta[HEADS] = embeddings_graph(table[[5, 7]])
    plain = model.clone()
    Pipeline.parse("placeholders", GRAFTS).run(model)
    feed = decoder_feed(VOCABULARY)
    feed["tokens"][:, 3::5] = 7
    wanted = run(plain, feed)["logits"]
    feed["tokens"][:, 3::5] = VOCABULARY + 1
    np.testing.assert_array_equal(run(model, feed)["logits"], wanted)


def test_a_wrong_row_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    real = Placeholders.apply

    def spoiled(graft: Placeholders, model: ir.Model) -> None:
        real(graft, model)
        held = model.graph.initializers[ROWS]
        held.const_value = ir.tensor(tensor_of(held).numpy()[::-1].copy(), name=ROWS)

    monkeypatch.setattr(Placeholders, "apply", spoiled)
    with pytest.raises(LawBroken, match=r"placeholder-rows.*differs with placeholders"):
        Pipeline.parse("placeholders", GRAFTS).run(carrying(), decoder_feed(VOCABULARY))


def test_what_a_graph_carries_is_found_again() -> None:
    found = carried(grafted("placeholders | kv-cache | lower-ort"))
    assert found is not None
    again = carrying()
    again.meta[HEADS] = found
    Pipeline.parse("placeholders", GRAFTS).run(again)
    np.testing.assert_array_equal(tensor_of(again.graph.initializers[ROWS]).numpy(), ROWS_OF)
    assert carried(host()) is None


def elsewhere(model: ir.Model) -> None:
    """The ids are computed with beside the table."""
    tokens = input_of(model, "tokens")
    assert tokens is not None
    first = next(iter(model.graph))
    Emit(model.graph, "test", at=first).op("Neg", [tokens])


@pytest.mark.parametrize(
    ("rows", "spoil", "message"),
    [
        (None, None, "placeholders needs a head of embeddings that foretell tokens"),
        (seeded(16), None, "rows are of 16 numbers, and the host's of 32: they are another model"),
        (ROWS_OF, elsewhere, "reads ids in its table of tokens alone.*looked at: Neg"),
        (ROWS_OF, Placeholders().apply, "the graph has 3 placeholders already"),
    ],
)
def test_refusals(rows: Array | None, spoil: object, message: str) -> None:
    model = carrying(rows)
    if callable(spoil):
        spoil(model)
    with pytest.raises(NotApplicable, match=message):
        Pipeline.parse("placeholders", GRAFTS).run(model)


@pytest.mark.parametrize(("text", "mask"), [("count=2", 7), ("count=2, token=7", None)])
def test_the_hosts_own_token_stands_for_those_to_come(text: str, mask: int | None) -> None:
    """Without a head: each placeholder is read as the mask token, or as the one that is named."""
    model = carrying(None)
    write_facts(model, replace(decoder_facts(model), mask_token=mask))
    plain = model.clone()
    Pipeline.parse(f"placeholders{{{text}}}", GRAFTS).run(model, decoder_feed(VOCABULARY))
    assert decoder_facts(model).placeholders == 2
    feed = decoder_feed(VOCABULARY)
    feed["tokens"][:, 3::5] = 7
    wanted = run(plain, feed)["logits"]
    feed["tokens"][:, 3::5] = VOCABULARY + 1
    assert run(model, feed)["logits"].tobytes() == wanted.tobytes()


@pytest.mark.parametrize(
    ("text", "message"),
    [("count=2", "neither its config nor its tokenizer names a mask token"),
     ("count=2, token=61", "the token 61 is not among the 61 ids"),
     ("token=7", "a token needs a count"), ("count=-1", "count=-1 is not a number of tokens")],
)  # fmt: skip
def test_a_token_that_is_not_there_is_refused(text: str, message: str) -> None:
    with pytest.raises(NotApplicable, match=message):
        Pipeline.parse(f"placeholders{{{text}}}", GRAFTS).run(carrying(None))
