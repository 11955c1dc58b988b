"""Two owners of caches on one graph: each with its own rows, its own length and its own cache."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest

from graftline.errors import LawBroken
from graftline.evaluate import Feed, run
from graftline.models.decoder import TinyDecoder
from graftline.passes import GRAFTS, Pipeline
from graftline.passes.grafts.kv_cache import empty_caches
from graftline.passes.graph.emit import Emit, new_input, new_output
from graftline.passes.graph.ports import cache_of, input_of, lengths_of
from graftline.passes.pipeline.graft import ROLE, Graft
from graftline.ports import Port, read_ports, slot_ports, step_port, write_ports
from tests.passes.tiny_hosts import decoder_feed

OWNER, WIDTH, HEADS, SIZE = "head.0", 32, 2, 16
HIDDEN, START = f"{OWNER}.hidden", f"{OWNER}.write_index"


@dataclass(frozen=True)
class AddHead(Graft):
    """Adds an attention over M rows of its own, with a cache of its own."""

    def apply(self, model: ir.Model) -> None:
        graph, ports = model.graph, list(read_ports(model))
        rows = new_input(graph, HIDDEN, ir.DataType.FLOAT, ["B", "M", WIDTH])
        start = new_input(graph, START, ir.DataType.INT64, ["B"])
        ports.append(Port(HIDDEN, "hidden", "in", "float32", ("B", "M", WIDTH), owner=OWNER))
        ports.append(Port(START, "write_index", "in", "int64", ("B",), owner=OWNER))
        e, random = Emit(graph, self.name()), np.random.default_rng(0)
        split, axes = e.const("split", [0, 0, HEADS, SIZE], np.int64), [0, 2, 1, 3]
        operands: list[ir.Value] = []
        for part in ("query", "key", "value"):
            weight = random.standard_normal((WIDTH, HEADS * SIZE)).astype(np.float32) / 6
            made = e.op("MatMul", [rows, e.const(f"head.{part}", weight)])
            heads = e.op("Transpose", [e.op("Reshape", [made, split])], perm=axes)
            operands.append(
                heads if part == "query" else self._cached(e, part, heads, start, ports)
            )
        slots = e.op("Range", [
            e.const("head.zero", 0, np.int64),
            e.op("Squeeze", [e.op("Shape", [operands[1]], start=2, end=3)]),
            e.const("head.one", 1, np.int64),
        ])  # fmt: skip
        count = e.op("Squeeze", [e.op("Shape", [rows], start=1, end=2)])
        new = e.op(
            "Range", [e.const("head.zero", 0, np.int64), count, e.const("head.one", 1, np.int64)]
        )
        at = e.op("Add", [e.op("Unsqueeze", [start, e.const("head.1", [1], np.int64)]), new])
        mask = e.op(
            "LessOrEqual", [slots, e.op("Unsqueeze", [at, e.const("head.13", [1, 3], np.int64)])]
        )
        node = e.node("Attention", [*operands, mask], [""])
        node.metadata_props[ROLE] = "attention"
        joined = e.op("Transpose", [node.outputs[0]], perm=axes)
        out = e.op("Reshape", [joined, e.const("join", [0, 0, HEADS * SIZE], np.int64)])
        name, shape = f"{OWNER}.out", ("B", "M", HEADS * SIZE)
        new_output(graph, out, name, ir.DataType.FLOAT, shape)
        ports.append(Port(name, "hidden", "out", "float32", shape, owner=OWNER))
        write_ports(model, ports)

    def _cached(
        self, e: Emit, part: str, fresh: ir.Value, start: ir.Value, ports: list[Port]
    ) -> ir.Value:
        name, shape = f"{OWNER}.cache.{part}", ("B", HEADS, "S", SIZE)
        cache = new_input(e.graph, name, ir.DataType.FLOAT, shape)
        written = e.op("TensorScatter", [cache, fresh, start], axis=2, mode="linear")
        new_output(e.graph, written, f"{name}.out", ir.DataType.FLOAT, shape)
        common = {"owner": OWNER, "state": "slots", "valid_by": START, "compare": "written"}
        role = f"cache.{part}"
        ports.append(Port(name, role, "in", "float32", shape, 0, **common))  # type: ignore[arg-type]
        ports.append(Port(f"{name}.out", role, "out", "float32", shape, 0, mirror=name, **common))  # type: ignore[arg-type]
        return written

    def neutral(self, feed: Feed, after: ir.Model) -> Feed:
        batch, random = len(feed["tokens"]), np.random.default_rng(1)
        rows = random.standard_normal((batch, 5, WIDTH)).astype(np.float32)
        own = {k: v for k, v in empty_caches(after, batch, 12).items() if k.startswith(OWNER)}
        for cache in own.values():  # what was there before the step
            cache[:, :, :3] = random.standard_normal(cache[:, :, :3].shape)
        return {**feed, HIDDEN: rows, START: np.full(batch, 3), **own}


def headed() -> tuple[ir.Model, Feed]:
    model, feed = TinyDecoder().build(), decoder_feed(61, rows=9)
    for graft in Pipeline.parse("anchors | kv-cache | tree-mask", GRAFTS).grafts:
        Pipeline((graft,)).run(model, feed)
        feed = graft.neutral(feed, model)
    Pipeline((AddHead(),)).run(model, feed)
    return model, AddHead().neutral(feed, model)


def test_each_owner_is_found_by_its_ports() -> None:
    model, _ = headed()
    ports = read_ports(model)
    assert {p.owner for p in slot_ports(ports)} == {"target", OWNER}
    assert input_of(model, "write_index", OWNER) is not input_of(model, "write_index")
    assert cache_of(model, OWNER) is not cache_of(model)
    assert {v.name for v in lengths_of(model).values()} == {"write_index", START}
    steps = [step_port(ports, owner) for owner in ("target", OWNER)]
    assert [s.name for s in steps if s is not None] == ["tokens", HIDDEN]


@pytest.mark.parametrize("lowering", ["lower-ort", "pack-projections | lower-ort"])
def test_lowering_keeps_both_and_each_counts_its_own_rows(lowering: str, tmp_path: Path) -> None:
    model, feed = headed()
    one = {name: array[:1] for name, array in feed.items()}  # ONNX Runtime's kernel: one past
    expected = run(model, one)
    laws = [r for report in Pipeline.parse(lowering, GRAFTS).run(model, feed) for r in report.laws]
    assert any(r.law == "neutral" and r.status == "held" for r in laws)
    attentions = [n for n in model.graph if n.op_type == "GroupQueryAttention"]
    assert len(attentions) == 3
    assert len({n.inputs[5] for n in attentions}) == 2  # lengths of two owners
    ir.save(model, tmp_path / "g.onnx")
    session = onnxruntime.InferenceSession(str(tmp_path / "g.onnx"))
    names = [o.name for o in session.get_outputs()]
    got = dict(zip(names, session.run(names, one), strict=True))
    for name in ("logits", f"{OWNER}.out"):
        np.testing.assert_allclose(got[name], expected[name], rtol=1e-4, atol=1e-4)
    for name, length in (("cache.0.key.out", 9), (f"{OWNER}.cache.key.out", 8)):
        a, b = (np.asarray(side[name])[:, :, :length] for side in (got, expected))
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)


def test_a_cache_written_at_the_others_place_breaks_the_law() -> None:
    @dataclass(frozen=True)
    class Crossed(Graft):
        """The head's cache is written from the host's index."""

        def apply(self, model: ir.Model) -> None:
            index = input_of(model, "write_index")
            scatters = [n for n in model.graph if n.op_type == "TensorScatter"]
            own = next(n for n in scatters if (n.inputs[0].name or "").startswith(OWNER))  # type: ignore[union-attr]
            own.replace_input_with(2, index)

    model, feed = headed()
    with pytest.raises(LawBroken, match=f"'neutral' at '{OWNER}"):
        Pipeline((Crossed(),)).run(model, feed)
