"""pack-rows: several sequences in one call are what each is alone."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from graftline.errors import LawBroken, NotApplicable
from graftline.passes import GRAFTS, Pipeline
from graftline.passes.lower.ort import pack_rows
from graftline.ports import by_role, read_ports, slot_ports
from tests.passes.tiny_hosts import HOSTS, decoder_feed, grafted, host

CHAINS = "anchors | kv-cache | select-rows | reduce-logits | pack-projections | lower-ort"


@pytest.mark.parametrize("sequences", [2, 3, 8])
def test_every_law_holds_in_one_call(sequences: int) -> None:
    model = host()
    text = f"{CHAINS} | pack-rows{{sequences={sequences}}}"
    reports = Pipeline.parse(text, GRAFTS).run(model, decoder_feed(61))
    laws = {row.law: row for row in reports[-1].laws}
    assert {"typed", "wellformed", "interface", "alike", "neutral", "together"} == laws.keys()
    assert {row.status for row in laws.values()} == {"held"}
    counts = Counter(n.op_type for n in model.graph)
    assert counts["GroupQueryAttention"] == 2 * sequences
    ports = read_ports(model)
    assert len(slot_ports(ports, "in")) == 4 * sequences
    assert {port.shape[0] for port in slot_ports(ports)} == {1}, "each cache is of one sequence"
    values = {v.name: v for v in [*model.graph.inputs, *model.graph.outputs]}
    for port in slot_ports(ports):
        assert [*map(str, values[port.name].shape or ())] == [*map(str, port.shape)]
    assert by_role(ports, "counts", "in")[0].shape == (sequences,)
    assert by_role(ports, "logits", "out")[0].shape[0] == 1


@pytest.mark.parametrize("spec", ["window", "head-of-8", "one-block"])
def test_other_hosts_are_packed_too(spec: str) -> None:
    model = host(HOSTS[spec])
    text = f"{CHAINS} | pack-rows{{sequences=2}}"
    reports = Pipeline.parse(text, GRAFTS).run(model, decoder_feed(61))
    assert reports[-1].laws[-1].law == "together"


def test_matrix_products_are_made_once_for_all() -> None:
    one, many = grafted(CHAINS), grafted(f"{CHAINS} | pack-rows{{sequences=8}}")
    products = [sum("MatMul" in n.op_type for n in m.graph) for m in (one, many)]
    assert products[0] == products[1] > 0


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("anchors | kv-cache | tree-mask | lower-ort | pack-rows", "chains"),
        ("anchors | kv-cache | pack-rows", "no GroupQueryAttention of its own"),
        (f"{CHAINS} | pack-rows{{sequences=1}}", "at least 2"),
    ],
)
def test_what_does_not_fit_is_refused(text: str, reason: str) -> None:
    with pytest.raises(NotApplicable, match=reason):
        grafted(text)


def test_an_attention_bias_is_refused() -> None:
    model = grafted(CHAINS)
    node = next(n for n in model.graph if n.op_type == "GroupQueryAttention")
    node.resize_inputs(pack_rows.BIAS + 1)
    node.replace_input_with(pack_rows.BIAS, model.graph.inputs[0])
    with pytest.raises(NotApplicable, match="adds a bias"):
        GRAFTS["pack-rows"]().requires(model)


@pytest.mark.parametrize("fault", ["_lengths", "_cache"])
def test_sequences_that_are_mixed_up_are_found(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def lengths(self: pack_rows.PackRows, *given: Any) -> Any:
        totals, lasts = known(self, *given)
        return totals[::-1], lasts[::-1]

    owner = pack_rows.PackRows if fault == "_lengths" else pack_rows
    known = getattr(owner, fault)
    other = {"_lengths": lengths, "_cache": lambda graph, value, s: known(graph, value, 1 - s)}
    monkeypatch.setattr(owner, fault, other[fault])
    with pytest.raises(LawBroken, match="together"):
        Pipeline.parse(f"{CHAINS} | pack-rows{{sequences=2}}", GRAFTS).run(host(), decoder_feed(61))
