"""branch-mlp: a gated MLP in a branch, which runs where a row needs it."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir

from graftline.errors import LawBroken, NotApplicable
from graftline.evaluate import Feed
from graftline.law import Evidence
from graftline.passes.graph.emit import Emit
from graftline.passes.laws.compare import Comparison, activation_dtype, written_slots
from graftline.passes.laws.gated import ALWAYS, NEVER, similarity_of, with_similarity
from graftline.passes.pipeline.graft import BLOCK, MADE_BY, ROLE, Evaluate, Graft, Law, Stage
from graftline.ports import GATE, read_ports

_PRODUCTS = frozenset({"MatMul", "FusedMatMul", "Gemm", "MatMulNBits", "DynamicQuantizeMatMul"})


def branches(
    graft: Graft, before: ir.Model, after: ir.Model, feed: Feed, evaluate: Evaluate
) -> Evidence:
    """Where every row passes by all MLPs that it can, and where none does, the branches give what
    the graph without them gives; and the similarity is what it was."""
    if (was := similarity_of(before)) != (own := similarity_of(after)):
        by = f"is {own:g}, and was {was:g}"
        raise LawBroken(graft.name(), "branches", "the similarity", by)
    comparison, worst = Comparison(graft.name(), "branches", activation_dtype(after)), 0.0
    ports = read_ports(after)
    for similarity in (NEVER, ALWAYS):
        expected, got = (
            written_slots(evaluate(with_similarity(model, similarity), feed), ports, feed)
            for model in (before, after)
        )
        worst = max(worst, comparison.outputs(got, expected, ports))
    count = sum(GATE in node.metadata_props for node in after.graph)
    what = f"{count} branches give what their MLPs give, taken or not"
    return Evidence(what, worst, comparison.limit)


@dataclass(frozen=True)
class Gate:
    """A gated block's end: `node` chooses by rows between the stream without the MLP, `mid`, and
    with it; `passes` [B, N, 1] are the rows that pass by, and `later` those that pass by the next
    MLP, where there is one."""

    node: ir.Node
    passes: ir.Value
    mid: ir.Value
    later: ir.Value | None

    @classmethod
    def of(cls, node: ir.Node) -> Gate:
        """Read what gate-mlp stamped."""
        passes, mid, _ = node.inputs
        assert passes is not None, "a Where has three inputs"
        assert mid is not None, "a Where has three inputs"
        block = node.metadata_props[BLOCK]
        readers = [n for n in passes.consumers() if n.metadata_props.get(BLOCK) == block]
        later = [n.outputs[0] for n in readers if n.op_type == "Or"]
        return cls(node, passes, mid, later[0] if later else None)


@dataclass(frozen=True)
class BranchMlp(Graft):
    """Puts the MLPs that `gate-mlp` has gated, and the judgement of them, into branches of an If: a
    step whose rows all pass by an MLP does not compute it.

    An If and not a graph for each number of MLPs: how many a row passes by is known only once the
    stream is there. A branch reads the weights where they lie; what it copies is the stream of the
    step's rows and, for each, whether it passes by. Rows that share a step share the branch: where
    one needs the MLP it is computed for all, and the others do not use it.
    """

    stage: ClassVar[Stage] = "lower"
    laws: ClassVar[tuple[Law, ...]] = (branches,)

    def requires(self, model: ir.Model) -> None:
        if not any(GATE in node.metadata_props for node in model.graph):
            raise NotApplicable("branch-mlp finds no gated MLP; put gate-mlp before it")
        if any(node.op_type == "If" and GATE in node.metadata_props for node in model.graph):
            raise NotApplicable("branch-mlp: the MLPs of this graph are in branches already")
        for node in [n for n in model.graph if GATE in n.metadata_props]:
            own = _own(model.graph, Gate.of(node))
            if not any(n.op_type in _PRODUCTS for n in own):
                block = node.metadata_props[GATE]
                raise NotApplicable(
                    f"branch-mlp: nothing of the MLP of block {block} is its gate's alone, so that "
                    "a branch would save nothing; run it behind lower-ort, and gate other blocks",
                    [n.name or n.op_type for n in own],
                )

    def apply(self, model: ir.Model) -> None:
        every: ir.Value | None = None
        for node in [n for n in model.graph if GATE in n.metadata_props]:
            gate = Gate.of(node)
            if every is None:
                every = _all(Emit(model.graph, self.name(), node), gate.passes)
            every = self._branch(model.graph, gate, every)

    def _branch(self, graph: ir.Graph, gate: Gate, every: ir.Value) -> ir.Value | None:
        """Move a gate's MLP into an If, taken where not `every` row passes by; whether all pass by
        the next one, where there is one."""
        emit, own, last = Emit(graph, self.name(), gate.node), _own(graph, gate), gate.node
        ends, passed = [last.outputs[0]], [gate.mid]
        if gate.later is not None:
            ends.append(gate.later)
            passed += [gate.passes, every]
        made = emit.node("If", [every], [""] * len(passed))
        made.metadata_props[GATE] = last.metadata_props.pop(GATE)
        made.metadata_props[ROLE] = last.metadata_props.pop(ROLE)
        for end, value in zip(ends, made.outputs, strict=False):
            value.shape, value.type = end.shape, end.type
            end.replace_all_uses_with(value, replace_graph_outputs=True)
        graph.remove(own)
        name = f"{self.name()}.{made.metadata_props[GATE]}"
        computed = ir.Graph([], [], nodes=own, name=f"{name}.computed")
        if gate.later is not None:
            ends.append(_all(Emit(computed, self.name(), block=emit.block), gate.later))
        skipped = ir.Graph([], [], nodes=[], name=f"{name}.skipped")
        without = Emit(skipped, self.name(), block=emit.block)
        for branch, values in (
            (computed, ends), (skipped, [without.op("Identity", [v]) for v in passed])
        ):  # fmt: skip
            branch.outputs.extend(values)
            _name(branch, self.name())
        made.attributes["then_branch"] = ir.AttrGraph("then_branch", skipped)
        made.attributes["else_branch"] = ir.AttrGraph("else_branch", computed)
        return made.outputs[2] if gate.later is not None else None


def _all(emit: Emit, rows: ir.Value) -> ir.Value:
    """Whether all rows do, [] bool: the condition of an If."""
    least = emit.op("ReduceMin", [emit.op("Cast", [rows], to=ir.DataType.INT32)], keepdims=0)
    return emit.op("Cast", [least], to=ir.DataType.BOOL)


def _name(branch: ir.Graph, by: str) -> None:
    """Name what a pass has made there by the branch: no graph has two values of a name, those of
    its branches included."""
    made = [node for node in branch if node.metadata_props.get(MADE_BY) == by]
    for place, node in enumerate(made):
        node.name = node.outputs[0].name = f"{branch.name}.{place}"


def _own(graph: ir.Graph, gate: Gate) -> list[ir.Node]:
    """The nodes, in order, that only a gate's ends need: what it is judged by included, what it
    passes by, and who does, not."""
    ends = {gate.node.outputs[0], gate.later}
    own = set[ir.Node]()
    for node in reversed(list(graph)):
        if ends & set(node.outputs) or all(_is_read_by(v, own, gate) for v in node.outputs):
            own.add(node)
    return [node for node in graph if node in own]


def _is_read_by(value: ir.Value, nodes: Collection[ir.Node], gate: Gate) -> bool:
    """Whether these nodes alone read a value, besides which the gate does not need it."""
    if value in (gate.mid, gate.passes) or value.is_graph_output():
        return False
    readers = value.consumers()
    return bool(readers) and all(reader in nodes for reader in readers)
