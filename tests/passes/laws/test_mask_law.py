"""The law `masks`: it holds for what is right, and every fault on purpose breaks it by name."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir
import pytest

from graftline.errors import LawBroken
from graftline.evaluate import Array
from graftline.passes import GRAFTS, Pipeline
from graftline.passes.graph.emit import Emit
from graftline.passes.graph.seen import Seen
from graftline.passes.laws.masks import masks
from tests.passes.canonical.mask_hosts import host

CANONICALIZE = "canonicalize{positions=512}"
Fault = Callable[[ir.Graph], None]


def change(graph: ir.Graph, name: str, new: Callable[[Array], Array]) -> None:
    """Other numbers in an initializer, in place."""
    value = graph.initializers[name]
    assert value.const_value is not None
    array = np.asarray(new(value.const_value.numpy()), value.const_value.numpy().dtype)
    value.const_value = ir.tensor(array, name=name)


def number(graph: ir.Graph, old: int, new: int) -> None:
    """Another number in place of a constant of the masks."""
    names = [
        n for n, v in graph.initializers.items()
        if n.startswith(("mask.", "window.")) and v.const_value is not None
        and v.const_value.size == 1 and v.const_value.numpy().reshape(()) == old
    ]  # fmt: skip
    for name in names:
        change(graph, name, lambda a: np.full_like(a, new))
    assert names


def attentions(graph: ir.Graph) -> list[ir.Node]:
    return [n for n in graph if n.op_type == "Attention"]


def shifted(graph: ir.Graph, readers: Callable[[ir.Node], bool]) -> None:
    """Positions one too large for some of their readers."""
    positions = next(v for v in graph.inputs if v.name == "positions")
    chosen = [(n, i) for n, i in positions.uses() if readers(n)]
    emit = Emit(graph, "fault", graph[0])
    more = emit.op("Add", [positions, emit.const("fault.one", 1, np.int64)])
    for node, index in chosen:
        node.replace_input_with(index, more)
    assert chosen


def one_layer_causal(graph: ir.Graph) -> None:
    node = attentions(graph)[1]
    node.resize_inputs(3)
    node.attributes["is_causal"] = ir.AttrInt64("is_causal", 1)


def one_layer_of_another(graph: ir.Graph) -> None:
    nodes = attentions(graph)
    nodes[1].replace_input_with(3, nodes[2].inputs[3])


def late_rotary(graph: ir.Graph) -> None:
    """Tables that are a position ahead from position 30 on."""
    for name in ("rotary.0.cos", "rotary.0.sin"):
        change(graph, name, lambda a: np.concatenate([a[:30], a[31:], a[-1:]]))


def one_head(graph: ir.Graph) -> None:
    name = next(n for n in graph.initializers if n.endswith("alibi.slopes") or "alibi" in n)
    change(graph, name, lambda a: a * np.asarray([1, 1, 1.01, 1]).reshape(1, 4, 1, 1))


def by_order(graph: ir.Graph) -> None:
    """The slots of a tree's rows are taken for their positions."""
    for node in [n for n in graph if n.op_type == "ScatterElements"]:
        node.outputs[0].replace_all_uses_with(node.inputs[0])


def unwritten(graph: ir.Graph) -> None:
    """What a formula says, whatever is visible."""
    for node in attentions(graph):
        mask = node.inputs[3].producer()
        node.replace_input_with(3, mask.inputs[1])


def one_start(graph: ir.Graph) -> None:
    """All sequences of a batch are taken to begin where the first does."""
    start = next(v for v in graph.inputs if v.name == "write_index")
    emit = Emit(graph, "fault", graph[0])
    zeros = emit.op("Mul", [start, emit.const("fault.zero", 0, np.int64)])
    first = emit.op("Gather", [start, emit.const("fault.first", [0], np.int64)], axis=0)
    same = emit.op("Add", [zeros, first])
    for node, index in list(start.uses()):
        if node.op_type == "Unsqueeze":
            node.replace_input_with(index, same)


RAW: dict[str, tuple[list[str], Fault, str]] = {
    "a window of 80": (["window"], lambda g: number(g, 40, 80), "seen with 0, but hidden"),
    "a window of 41": (["window"], lambda g: number(g, 40, 41), "seen with 0, but hidden"),
    "one layer of three causal": (["window"] * 3, one_layer_causal, "hidden before"),
    "one layer with another's mask": (["window", "chunked", "dilated"], one_layer_of_another,
                                      "before"),
    "a slope of one head": (["alibi"], one_head, "head 2"),
    "a chunk of 25": (["chunked"], lambda g: number(g, 24, 25), "query"),
    "five sinks": (["window and sinks"], lambda g: number(g, 4, 5), "key 4: seen"),
    "clipped at 41": (["clipped alibi"], lambda g: number(g, 40, 41), "query"),
    "another learned bias": (["bucketed"],
                             lambda g: change(g, "bias_table", lambda a: np.roll(a, 1, axis=1)),
                             "before"),
    "queries a position ahead in the mask": (
        ["window"], lambda g: shifted(g, lambda n: n.op_type == "Unsqueeze"
                                      and n.inputs[1].name == "axes.1_3"), "query"),
    "rotary ahead from position 30 on": (["causal"], late_rotary, "at position 30"),
}  # fmt: skip
CACHED: dict[str, tuple[list[str], Fault, str]] = {
    key: RAW[key] for key in ("a window of 80", "a window of 41", "a chunk of 25", "five sinks",
                              "a slope of one head", "clipped at 41", "another learned bias",
                              "queries a position ahead in the mask")
} | {
    "one start for a whole batch": (["alibi"], one_start, "query"),
    "rotary a position ahead": (["causal"],
                                lambda g: shifted(g, lambda n: n.op_type == "RotaryEmbedding"),
                                "heads at position 0"),
}  # fmt: skip


def grafted(layers: list[str], text: str) -> tuple[ir.Model, ir.Model]:
    """The model before and after the last graft of a pipeline."""
    *front, last = Pipeline.parse(text, GRAFTS).grafts
    model = host(layers)
    Pipeline(tuple(front)).run(model)
    before = model.clone()
    Pipeline((last,)).run(model)
    return before, model


def law(text: str, before: ir.Model, after: ir.Model) -> str:
    return masks(Pipeline.parse(text, GRAFTS).grafts[-1], before, after).what


@pytest.mark.parametrize(("layers", "fault", "names"), RAW.values(), ids=RAW.keys())
def test_faults_of_canonicalize_are_caught(layers: list[str], fault: Fault, names: str) -> None:
    before, after = grafted(layers, CANONICALIZE)
    assert "equal the raw graph's" in law(CANONICALIZE, before, after)
    fault(after.graph)
    with pytest.raises(LawBroken, match=f"canonicalize breaks the law 'masks'.*{names}"):
        law(CANONICALIZE, before, after)


@pytest.mark.parametrize(("layers", "fault", "names"), CACHED.values(), ids=CACHED.keys())
@pytest.mark.parametrize("last", ["kv-cache", "tree-mask"])
def test_faults_over_a_cache_are_caught(
    layers: list[str], fault: Fault, names: str, last: str
) -> None:
    text = f"{CANONICALIZE} | anchors | kv-cache" + (" | tree-mask" if last == "tree-mask" else "")
    before, after = grafted(layers, text)
    # faults change constants in place, which the graph before shares by name only
    assert "equal the host's" in law(text, before, after)
    fault(after.graph)
    with pytest.raises(LawBroken, match=f"{last} breaks the law 'masks'"):
        law(text, before, after)
    assert names


@pytest.mark.parametrize("fault", [by_order, unwritten])
@pytest.mark.parametrize("layer", ["chunked", "window and sinks", "clipped alibi"])
def test_faults_of_a_tree_are_caught(layer: str, fault: Fault) -> None:
    text = f"{CANONICALIZE} | anchors | kv-cache | tree-mask"
    before, after = grafted([layer], text)
    fault(after.graph)
    with pytest.raises(LawBroken, match="tree-mask breaks the law 'masks'"):
        law(text, before, after)


def test_a_graph_whose_raw_masks_nobody_noted_does_not_pass() -> None:
    before, after = grafted(["causal"], CANONICALIZE)
    attentions(after.graph)[0].meta.clear()
    with pytest.raises(LawBroken, match="was not recorded"):
        law(CANONICALIZE, before, after)


def test_hidden_is_far_below_the_best_of_a_row_and_shifts_do_not_count() -> None:
    bias = np.asarray([[[0.0, -3e38, 1.0], [7.0, 8.0, -np.inf]]], np.float32)
    seen = Seen.of(bias)
    np.testing.assert_array_equal(seen.allowed[0], [[True, False, True], [True, True, False]])
    assert seen.equals(Seen.of(bias + 5))
    assert not seen.equals(Seen.of(bias * 1.001))
    assert Seen.of(np.asarray([[[True, False]]])).equals(Seen.of(np.asarray([[[0.0, -1e4]]])))
