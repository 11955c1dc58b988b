"""Masks and values per position: served as the functions they are, or refused by name."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest

import graftline
from graftline.build.tensorrt.builder import BuildOptions, build
from graftline.evaluate import run
from graftline.facts import decoder_facts
from graftline.passes import GRAFTS, Pipeline
from graftline.passes.grafts.tree_mask import causal_mask
from graftline.ports import read_ports
from graftline.tree import Tree
from tests.passes.canonical.mask_hosts import FAST, MASKS, SPELLINGS, feed, host
from tests.passes.canonical.mask_steps import FRONT, LENGTH, close, empty, grafted, kinds, stepped
from tests.passes.tiny_hosts import decoder_feed

MIX = ["chunked", "window and sinks", "bucketed", "chunked", "causal", "window"]


@pytest.mark.parametrize("layers", [*([name] for name in MASKS), MIX], ids="+".join)
def test_masks_are_served_as_they_are(layers: list[str]) -> None:
    """One pass and chunks through the cache give what the raw graph gives, longer than 2c + 1."""
    given = feed(LENGTH, 2)
    want = run(host(layers), given)["logits"]
    model = grafted(host(layers), "canonicalize{positions=512}")
    expected = [name.partition(" from")[0] if name in FAST else "formula" for name in layers]
    assert kinds(model) == expected
    close(run(model, given)["logits"], want)
    grafted(model, "anchors | kv-cache")
    close(stepped(model, given, [37, 30, 1, 24]), want)
    grafted(model, "tree-mask")
    close(stepped(model, given, [50, 42]), want)


@pytest.mark.parametrize("name", SPELLINGS)
def test_spellings(name: str) -> None:
    """However a function of positions is written, in Trilu, buffers, sums or by position."""
    given = feed(LENGTH)
    want = run(host([SPELLINGS[name]]), given)["logits"]
    model = grafted(host([SPELLINGS[name]]), "canonicalize{positions=512}")
    assert kinds(model) == [name.split()[0].rstrip(":")]
    grafted(model, "anchors | kv-cache")
    close(stepped(model, given, [45, 47]), want)


@pytest.mark.parametrize("name", ["segments by a table", "a bias for every pair"])
def test_a_table_bounds_the_positions(name: str) -> None:
    model = grafted(host([SPELLINGS[f"formula: {name}"]]), FRONT)
    assert decoder_facts(model).positions == 96


@pytest.mark.parametrize("name", ["chunked", "window and sinks", "clipped alibi", "bucketed"])
def test_a_tree_sees_by_depth(name: str) -> None:
    """Every path of a tree behind 46 committed rows, scored at once, is the path as a chain."""
    past, model = 46, grafted(host([name]), f"{FRONT} | tree-mask")
    given = feed(past)
    parents = np.asarray([-1, 0, 0, 1, 1, 3, 5])
    tree = Tree(np.asarray([1, 2, 3, 4, 5, 6, 7]), parents)
    first = given | empty(model, 1, 64) | {"write_index": np.zeros(1, np.int64)}
    first["mask"] = causal_mask(np.zeros(1, np.int64), past, 64)
    done = run(model, first)
    held = {p.mirror: done[p.name] for p in read_ports(model) if p.mirror is not None}
    mask = np.zeros((1, 1, 7, 64), np.bool_)
    mask[..., :past] = True
    mask[0, 0, :, past : past + 7] = tree.mask
    scored = run(model, held | {
        "tokens": tree.tokens[None], "positions": past + tree.depth[None],
        "write_index": np.asarray([past]), "mask": mask,
    })["logits"][0]  # fmt: skip
    raw = host([name])
    for leaf in (2, 4, 6):
        path = list(tree.path_to(leaf))
        ids = np.concatenate([given["tokens"][0], tree.tokens[path]])[None]
        chain = {"tokens": ids, "positions": np.arange(ids.size)[None]}
        close(scored[path], run(raw, chain)["logits"][0, past:])


@pytest.mark.parametrize("layers", [["chunked", "bucketed"], MIX[:3]], ids="+".join)
def test_through_optimize_and_generate(layers: list[str], tmp_path: Path) -> None:
    """Greedy text of the bundle, plain and drafted, is that of ONNX Runtime on the raw file."""
    raw = host(layers, size=16)
    raw.metadata_props.clear()
    ir.save(raw, tmp_path / "raw.onnx")
    bundle = graftline.optimize(tmp_path / "raw.onnx", tmp_path / "out")
    engine = graftline.load(bundle.path, capacity=128)
    session = ort.InferenceSession(tmp_path / "raw.onnx")
    ids = [int(i) for i in np.random.default_rng(0).integers(0, 11, 20)]
    want = list(ids)
    for _ in range(LENGTH - 20):
        fed = {"tokens": np.asarray([want]), "positions": np.arange(len(want))[None]}
        want.append(int(session.run(None, fed)[0][0, -1].argmax()))
    for recipe in ("plain", "token-recycling"):
        made = engine.generate(
            np.asarray(ids), max_new_tokens=LENGTH - 20, ignore_eos=True, recipe=recipe
        )
        assert list(made.tokens) == want[20:]


LOWERINGS = (
    "kv-cache | tree-mask | lower-ort",
    "kv-cache | lower-ort{dtype=fp16}",
    "kv-cache | tree-mask | lower-tensorrt",
    "kv-cache | tree-mask | cut-depth{blocks=2} | lower-ort",
)


@pytest.mark.parametrize("text", LOWERINGS)
def test_every_lowering_takes_formulas(text: str) -> None:
    """The laws, which raise: the numeric ones with a feed, `masks` without."""
    model = grafted(host(MIX[:3], size=16), "canonicalize{positions=512}")
    pipeline, other = Pipeline.parse(f"anchors | {text}", GRAFTS), model.clone()
    reports = pipeline.run(model, decoder_feed(11))
    laws = [law.law for report in reports for law in report.laws]
    assert laws.count("neutral") == len(reports)
    laws = [law.law for report in pipeline.run(other) for law in report.laws]
    assert laws.count("masks") == text.count("kv-cache") + text.count("tree-mask")


def test_an_engine_is_built_of_formulas(tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx", reason="pip install tensorrt-rtx-cu13")
    text = f"{FRONT} | tree-mask | lower-tensorrt{{capacity=64}}"
    model = grafted(host(MIX[:3], size=16), text)
    ir.save(model, tmp_path / "graph.onnx")
    made = build(
        tmp_path / "graph.onnx", read_ports(model), "trt-rtx:sm89", tmp_path / "step.engine",
        BuildOptions(rows=(8,), chunk=16),
    )  # fmt: skip
    assert made.size > 100_000


def test_a_canonical_formula_is_read_again() -> None:
    """A graph that is canonical already keeps its masks."""
    given = feed(LENGTH)
    model = grafted(host(MIX[:3]), "canonicalize{positions=512}")
    want = run(model, given)["logits"]
    grafted(model, "canonicalize{positions=512}")
    assert kinds(model) == ["formula"] * 3
    close(run(model, given)["logits"], want)
