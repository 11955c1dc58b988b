"""lower-tensorrt of a step that verifies, commits and drafts by itself: inlined, and as plugins."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from graftline.build.tensorrt.plugins import NAMESPACE, for_parser, plugin_names
from graftline.errors import LawBroken, NotApplicable
from graftline.evaluate import Feed, run
from graftline.models.decoder import TinyDecoder
from graftline.passes import GRAFTS, Pipeline
from graftline.passes.graph.emit import Emit, new_output
from graftline.passes.graph.operators import call
from graftline.passes.laws.common import infer_shapes
from graftline.passes.lower.tensorrt.commit import COUNT, NEXT, PATH, NextStepCommits
from graftline.plugins import PLUGINS
from graftline.plugins.compile import compile_kernel
from graftline.plugins.kv_commit import KV_COMMIT
from graftline.plugins.spec import DOMAIN
from graftline.ports import Port, read_ports, write_ports
from tests.passes.tiny_hosts import decoder_feed

GREEDY = "anchors | kv-cache | tree-mask | select-rows | reduce-logits{topk=8} | fuse-verify"
SAMPLE = f"{GREEDY}{{sample=true}} | fuse-draft"
DRAFT = f"{GREEDY} | fuse-draft"
ROWS = 8


def lowered(
    text: str, feed: Feed | None = None, spec: TinyDecoder | None = None, **options: Any
) -> tuple[ir.Model, dict[str, str]]:
    """A tiny decoder, grafted and lowered, and what the laws of the lowering found."""
    model = (spec or TinyDecoder()).build()
    infer_shapes(model)
    given = {"capacity": 64, "rows": ROWS, **options}
    option = ",".join(f"{k}={str(v).lower()}" for k, v in given.items())
    pipeline = Pipeline.parse(f"{text} | pack-projections | lower-tensorrt{{{option}}}", GRAFTS)
    reports = pipeline.run(model, feed)
    return model, {law.law: law.text for law in reports[-1].laws}


@pytest.mark.parametrize("plugins", [False, True], ids=["inlined", "plugins"])
@pytest.mark.parametrize(
    ("text", "dtype", "spec"),
    [
        (DRAFT, "fp32", TinyDecoder()),
        (SAMPLE, "fp16", TinyDecoder()),
        (GREEDY, "fp32", TinyDecoder(window=3)),
        (GREEDY, "fp16", TinyDecoder(alibi=True)),
    ],
    ids=["draft", "sample", "window", "alibi"],
)
def test_the_lowered_step_is_the_step(
    text: str, dtype: str, spec: TinyDecoder, plugins: bool
) -> None:
    """Also its second step, before which the first one's rows still lie where they were written."""
    model, found = lowered(text, decoder_feed(61), spec, dtype=dtype, plugins=plugins)
    assert "outputs are the host's" in found["neutral"]
    assert found["deferred"].startswith("4 rows are moved")
    own = {n.op_type for n in model.graph if n.domain == DOMAIN}
    standard = Counter(n.op_type for n in model.graph if not n.domain)
    if not plugins:
        assert own == set()
        assert not model.functions
        assert standard["Loop"] == standard["BitwiseXor"] == 0
        return
    assert {f[1] for f in model.functions} == own
    assert ("TreeAttention" in own, standard["Attention"]) == (not spec.alibi, 2 * spec.alibi)
    assert not own & {"KVCommit"}


def decode(model: ir.Model, feed: Feed, steps: int) -> list[list[int]]:
    """Accepted tokens of two sequences: every output that mirrors an input is its next value."""
    texts: list[list[int]] = [[], []]
    for _ in range(steps):
        made = run(model, feed)
        for port in read_ports(model):
            if port.direction == "out" and port.mirror is not None:
                feed[port.mirror] = made[port.name]  # of a cache's two the committed one comes last
        for text, tokens in zip(texts, made["accepted"], strict=True):
            text += [int(t) for t in tokens if t >= 0]
    return texts


def test_a_text_decoded_by_state_alone_is_the_canonical_graphs() -> None:
    """Six steps with nothing between them, of more tokens than steps."""
    spec = TinyDecoder(vocabulary=9)
    canonical = spec.build()
    infer_shapes(canonical)
    Pipeline.parse(DRAFT, GRAFTS).run(canonical)
    engine, _ = lowered(DRAFT, spec=spec, dtype="fp32")
    none = np.full((2, ROWS), -1, np.int64)
    feed: Feed = {
        "tokens": np.asarray([[3] + [0] * (ROWS - 1), [5] + [0] * (ROWS - 1)]),
        "parents": none,
        "write_index": np.zeros(2, np.int64),
        "table": np.full((9, 8), -1, np.int32),
        "template.parents": np.asarray([-1, 0, 0, 0, 0, 1, 2, 3]),
        "template.ranks": np.asarray([0, 0, 1, 2, 3, 0, 0, 0]),
    }
    for port in read_ports(engine):
        if port.role in ("cache.key", "cache.value") and port.direction == "in":
            feed[port.name] = np.full((2, *port.shape[1:]), 1e3, np.float32)
    own = {PATH: np.maximum(none, 0), COUNT: np.zeros(2, np.int64)}
    texts = decode(engine, {**feed, **own}, 6)
    assert texts == decode(canonical, dict(feed), 6)
    assert min(len(text) for text in texts) > 6


def test_ports_of_a_step_that_commits_the_last_one() -> None:
    model, _ = lowered(DRAFT, dtype="fp16")
    ports = {p.name: p for p in read_ports(model)}
    assert (ports[PATH].shape, ports[COUNT].shape) == (("B", "P"), ("B",))
    mirrors = {n: p.mirror for n, p in ports.items() if p.mirror and not n.startswith("cache.")}
    assert mirrors == {
        "path": PATH,
        "count": COUNT,
        NEXT: "write_index",
        "table.out": "table",
        "next.tokens": "tokens",
        "next.parents": "parents",
    }
    assert not [n for n in ports if n.endswith(".committed")]
    scatters = [n for n in model.graph if n.op_type == "TensorScatter"]
    assert all(n.inputs[0] in model.graph.inputs for n in scatters)
    assert all(n.outputs[0] in model.graph.outputs for n in scatters)
    assert len(scatters) == 4, "one write for every cache"


def test_plugins_have_their_tree_in_numbers_and_make_no_mask() -> None:
    model, _ = lowered(DRAFT, dtype="fp16", plugins=True)
    ports = {p.name: p.shape for p in read_ports(model)}
    assert ports["tokens"] == ports[PATH] == ports["next.tokens"] == ("B", ROWS)
    assert ports["template.parents"] == (ROWS,)
    assert not [n for n in model.graph if n.op_type in ("ScatterElements", "Attention")]
    attention = next(n for n in model.graph if n.op_type == "TreeAttention")
    assert [v.dtype for v in attention.inputs[:3] if v] == [ir.DataType.FLOAT16] * 3
    window = lowered(GREEDY, spec=TinyDecoder(window=3), dtype="fp16", plugins=True)[0]
    sizes = [n.attributes["window"].as_int() for n in window.graph if n.op_type == "TreeAttention"]
    assert sizes == [0, 3]


def test_every_plugin_of_a_step_compiles() -> None:
    """From the shapes of the graph: what kernels are compiled for are numbers."""
    pytest.importorskip("triton", reason="pip install graftline[kernels]")
    model, _ = lowered(SAMPLE, dtype="fp16", plugins=True)
    nodes = {n.op_type: n for n in model.graph if n.domain == DOMAIN}
    assert set(nodes) == {"CandidateUpdate", "DraftTree", "TreeAttention", "TreeVerify", "Uniforms"}
    for name, node in nodes.items():
        plugin, shapes = PLUGINS[name], list[list[int]]()
        for value, tensor in zip(node.inputs, plugin.inputs, strict=True):
            assert value is not None
            assert value.shape is not None
            dims = zip(value.shape, tensor.dims, strict=True)
            known = [(d if isinstance(d, int) else None, symbol) for d, symbol in dims]
            assert not [s for d, s in known if d is None and s in plugin.static], (name, value)
            shapes.append([1 if d is None else d for d, _ in known])
        values = {a.name: a.value for a in node.attributes.values()}
        assert compile_kernel(plugin, shapes, "float16", values, 90).ptx


def test_a_commit_that_moves_nothing_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    window = NextStepCommits._window

    def blind(self: NextStepCommits, *given: Any) -> None:
        window(self, *given)
        where = self.source.producer()
        assert where is not None
        assert where.inputs[2] is not None
        self.source = where.inputs[2]  # every slot keeps its own row

    monkeypatch.setattr(NextStepCommits, "_window", blind)
    with pytest.raises(LawBroken, match="lower-tensorrt breaks the law 'deferred' at 'logits'"):
        lowered(GREEDY, decoder_feed(61), dtype="fp32")


COMMIT = """
<ir_version: 11, opset_import: ["" : 24]>
one (int64[B,N] tokens, int64[B] write_index, float[B,2,S,4] cache, float[B,2,N,4] rows,
  int64[B,N] path, int64[B] count) => (float[B,2,S,4] written)
{
  written = TensorScatter <axis = 2> (cache, rows, write_index)
}
"""


@pytest.mark.parametrize("slots", [10, 16, 40], ids=["just enough", "tight", "roomy"])
def test_the_window_ends_where_the_cache_does(slots: int) -> None:
    """Six rows after a path of four of six, in caches that end right behind them, or later."""
    model, rng = ir.from_onnx_text(COMMIT), np.random.default_rng(slots)
    graph, inputs = model.graph, {v.name: v for v in model.graph.inputs}
    names = ("path", "count", "write_index")
    (done,) = call(
        model, Emit(graph, "t"), KV_COMMIT, [graph.outputs[0], *(inputs[n] for n in names)]
    )
    new_output(graph, done, "cache.committed", ir.DataType.FLOAT, ["B", 2, "S", 4])
    following = Emit(graph, "t").op("Add", [inputs["write_index"], inputs["count"]])
    new_output(graph, following, NEXT, ir.DataType.INT64, ["B"])
    write_ports(
        model,
        [
            Port("tokens", "tokens", "in", "int64", ("B", "N")),
            Port("write_index", "write_index", "in", "int64", ("B",)),
            Port(NEXT, NEXT, "out", "int64", ("B",), mirror="write_index"),
        ],
    )
    NextStepCommits(model, "t").apply()
    batch, nodes = 2, 5
    length = np.asarray([0, slots - 2 * nodes], np.int64)
    count = np.asarray([3, 5], np.int64)
    path = np.asarray([[0, 2, 4, -1, -1], [0, 1, 2, 3, 4]], np.int64)
    cache = rng.normal(size=(batch, 2, slots, 4)).astype(np.float32)
    rows = rng.normal(size=(batch, 2, nodes, 4)).astype(np.float32)
    feed = {"cache": cache, "rows": rows, "write_index": length, PATH: path, COUNT: count}
    feed |= {"tokens": np.zeros((batch, nodes), np.int64), "path": path, "count": count}
    got = run(model, feed)
    (expected,) = KV_COMMIT.reference(cache, path, count, length)
    at = length + count
    np.testing.assert_array_equal(got[NEXT], at)
    for b in range(batch):
        expected[b, :, at[b] : at[b] + nodes] = rows[b]
        used = slice(0, at[b] + nodes)
        np.testing.assert_array_equal(got["written"][b, :, used], expected[b, :, used])


def test_plugins_are_not_compiled_for_any_number_of_rows() -> None:
    with pytest.raises(NotApplicable, match="plugins take trees of 1 to 256 rows, not 300"):
        lowered(GREEDY, plugins=True, rows=300)


def test_what_the_parser_gets(tmp_path: Path) -> None:
    model, _ = lowered(DRAFT, dtype="fp16", plugins=True)
    file = tmp_path / "g.onnx"
    ir.save(model, file)
    assert plugin_names(file) == ["CandidateUpdate", "DraftTree", "TreeAttention", "TreeVerify"]
    with for_parser(file) as given:
        parsed = ir.load(given)
        assert given != file
    assert not parsed.functions
    spaces = {n.attributes[NAMESPACE].as_string() for n in parsed.graph if n.domain == DOMAIN}
    assert spaces == {DOMAIN}
    assert [p.name for p in tmp_path.iterdir()] == ["g.onnx"]
    ir.save(lowered(DRAFT, dtype="fp16")[0], file)
    with for_parser(file) as given:
        assert given == file
