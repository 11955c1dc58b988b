"""canvas-cache: a step of some positions is the host's for what is kept of the others."""

from __future__ import annotations

from dataclasses import replace
from math import erf
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from graftline.errors import GraftlineError, LawBroken, NotApplicable
from graftline.evaluate import Feed, run
from graftline.facts import CanvasFacts, read_facts, write_facts
from graftline.kinds.canvas import Canvas
from graftline.models.graph_facts import facts_of_graph
from graftline.passes import GRAFTS, Pipeline
from graftline.passes.grafts.canvas_cache import CanvasCache, some_positions, step_of
from graftline.passes.grafts.chosen_rows import ChosenRows
from graftline.ports import read_ports, write_ports
from tests.kinds.canvases import BARE, maskgit
from tests.kinds.latent_decoders import UPSCALER, model_of
from tests.kinds.samplers import lines
from tests.rounding import assert_same_sums

FEW = "{steps=3,full=0}"
"""Steps that six positions are enough for."""
TERMS = 6 * 8 + 2 * (8 + 4 + 7 + 8 + 8 + 16)
AFTER = [
    "x = Gather(table, canvas)",
    "val_0 = Gather(places, chosen)",
    "y = Add(x, val_0)",
    "kt = Transpose(y)",
    "val_1 = Unsqueeze(chosen, axes_1)",
    "val_2 = Shape(kt)",
    "val_3 = Expand(val_1, val_2)",
    "kept.0.next = ScatterElements(kept.0, val_3, kt)",
    "products = MatMul(y, kept.0.next)",
    "shares = Softmax(products)",
    "val_5 = Unsqueeze(chosen, axes_2)",
    "val_6 = Shape(y)",
    "val_7 = Expand(val_5, val_6)",
    "kept.1.next = ScatterElements(kept.1, val_7, y)",
    "read = MatMul(shares, kept.1.next)",
    "scores = MatMul(read, leave)",
]


def canonical(text: str) -> tuple[ir.Model, Feed]:
    model = model_of(text)
    write_facts(model, facts_of_graph(model, ""))
    Pipeline.parse("canonicalize-one-pass", GRAFTS).run(model)
    return model, Canvas().feed(read_ports(model), read_facts(model), 0)


def grafted(text: str, options: str = FEW) -> ir.Model:
    model, feed = canonical(text)
    Pipeline.parse(f"canvas-cache{options}", GRAFTS).run(model, feed)
    return model


def test_what_attention_reads_is_kept_and_tables_are_read_at_the_chosen_positions() -> None:
    after = grafted(BARE, "{steps=5,full=1,light=2}")
    assert lines(after) == AFTER
    shapes = {p.name: p.shape for p in read_ports(after) if p.direction == "in"}
    assert shapes == {
        "canvas": ("B", "M"), "chosen": ("B", "M"), "kept.0": ("B", 4, 6), "kept.1": ("B", 6, 4),
    }  # fmt: skip
    facts = read_facts(after)
    assert isinstance(facts, CanvasFacts)
    assert (facts.filling.steps, facts.filling.full, facts.filling.light) == (5, 1, 2)


def told(text: str, *changes: tuple[str, str]) -> str:
    """A host in which nodes are written otherwise, with some constants more."""
    more = {"none": 0, "few": 6, "short": -1}
    lines = [f"  {name} = Constant <value_ints = [{n}]> ()\n" for name, n in more.items()]
    text = text.replace("  one =", "".join(lines) + "  one =")
    for was, now in changes:
        assert was in text
        text = text.replace(was, now)
    return text


def attention(text: str, rank: int) -> str:
    """The same host with its attentions as nodes of that operator, over heads or beside them."""
    for i in range(2):
        begin, end = f"  kt{i} =", f"  side{i} ="
        made = f"  read{i} = Attention <scale = 0.5> (q{i}, k{i}, v{i})\n"
        if rank == 3:
            begin, end = f"  heads{i} =", f"  told{i} ="
            made = (
                f"  q{i}, k{i}, v{i} = Split <axis = 2, num_outputs = 3> (qkv{i})\n"
                f"  merged{i} = Attention <scale = 0.5, q_num_heads = 2, kv_num_heads = 2>"
                f" (q{i}, k{i}, v{i})\n"
            )
        text = text[: text.index(begin)] + made + text[text.index(end) :]
    return text.replace('"" : 20', '"" : 24')


ROTATED = told(
    maskgit(), ("Add (words, places)", "Identity (words)"), ("MatMul (q0,", "MatMul (r0,"),
    ("  kt0 =", "  r0 = Mul (q0, angles)\n  kt0 ="),
    ("float[8] norm", "float[1,1,7,4] angles, float[8] norm"),
)  # fmt: skip
"""Positions are a table [1, 1, N + 1, D] that queries meet in their heads."""
OF_A_CLASS = told(
    maskgit(), ("float[6,8] places", "float[3,6,8] every"),
    ("  placed =", "  places = Gather (every, label)\n  placed ="),
)  # fmt: skip
"""Every class has positions of its own."""
BEHIND = told(
    maskgit(), ("(first, placed)", "(placed, first)"),
    ("(x2, one, far, one)", "(x2, none, short, one)"),
)  # fmt: skip
"""The class stands behind the positions."""
FOLDED = told(
    maskgit(), *(
        (f"  kt{i} = Transpose <perm = [0, 1, 3, 2]> (k{i})",
         f"  sizes{i} = Shape (k{i})\n  last{i} = Gather <axis = 0> (sizes{i}, lasts)\n"
         f"  flat{i} = Concat <axis = 0> (short, last{i})\n"
         f"  kf{i} = Reshape (k{i}, flat{i})\n  kft{i} = Transpose <perm = [0, 2, 1]> (kf{i})\n"
         f"  back{i} = Gather <axis = 0> (sizes{i}, order)\n  kt{i} = Reshape (kft{i}, back{i})")
        for i in range(2)
    ),
    ("  short =", "  lasts = Constant <value_ints = [2, 3]> ()\n"
     "  order = Constant <value_ints = [0, 1, 3, 2]> ()\n  short ="),
)  # fmt: skip
"""Keys are transposed with the batch and the heads as one axis, as torch exports attentions."""


@pytest.mark.parametrize(
    "text",
    [maskgit(), attention(maskgit(), 4), attention(maskgit(), 3), ROTATED, OF_A_CLASS,
     maskgit().replace("[7]>", "[99]>"), BEHIND, FOLDED],
    ids=["spelled out", "Attention", "Attention of three axes", "rotary", "a class's own",
         "an end beyond", "behind", "keys folded"],
)  # fmt: skip
def test_hosts_hold_to_the_laws(text: str) -> None:
    after = grafted(text)
    kept = [p for p in read_ports(after) if p.role == "kept" and p.direction == "in"]
    assert len(kept) == 4, "keys and values of two blocks"


def by_hand(model: ir.Model, ids: Any, label: Any, at: Any, kept: Any) -> tuple[Any, list[Any]]:
    """The authors' step in numpy: keys and values of its own rows, the class's included, behind
    those of the other positions that were kept; and its keys and values by position."""
    w = {n: v.const_value.numpy().astype(np.float64)  # type: ignore[union-attr]
         for n, v in model.graph.initializers.items()}  # fmt: skip

    def even(x: Any) -> Any:
        return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)

    x = np.concatenate([w["classes"][label][None], w["table"][ids] + w["places"][at]])
    left = list[Any]()
    for i in range(2):
        qkv = (even(x) * w["norm"] @ w[f"wqkv{i}"]).reshape(-1, 3, 2, 4).transpose(1, 2, 0, 3)
        left.append(qkv[1:, :, 1:])
        others = np.setdiff1d(np.arange(6), at) if kept else []
        keys, values = (
            np.concatenate([kept[i][n][:, others], own], 1) if kept else own
            for n, own in enumerate(qkv[1:])
        )
        scores = qkv[0] @ keys.transpose(0, 2, 1) * 0.5
        shares = np.exp(scores - scores.max(-1, keepdims=True))
        read = shares / shares.sum(-1, keepdims=True) @ values
        x = x + read.transpose(1, 0, 2).reshape(len(x), 8) @ w[f"wo{i}"]
        wide = even(x) * w["norm"] @ w[f"up{i}"]
        x = x + 0.5 * wide * (1 + np.vectorize(erf)(wide / np.sqrt(2))) @ w[f"down{i}"]
    return even(x[1:]) * w["norm"] @ w["leave"], left


def test_a_light_step_is_that_of_the_authors() -> None:
    """Of a canvas whose chosen positions have other tokens than when the rest was kept."""
    model, feed = canonical(maskgit())
    after = grafted(maskgit())
    at = some_positions(2, 6)
    kept = run(after, CanvasCache(steps=3).neutral(feed, after))
    changed = feed | {"canvas": (feed["canvas"] + 1) % 6}
    got = run(after, step_of(read_ports(after), changed, at, kept))["scores"]
    for row in range(2):
        label = feed["condition.0"][row]
        whole, left = by_hand(model, feed["canvas"][row], label, np.arange(6), None)
        assert_same_sums(kept["scores"][row], whole, TERMS)
        light, _ = by_hand(model, changed["canvas"][row][at[row]], label, at[row], left)
        assert_same_sums(got[row], light, TERMS)
    full = run(model, changed)["scores"]
    assert np.abs(np.take_along_axis(full, at[..., None], 1) - got).max() > 1e-3, "lossy by design"


REFUSED = [
    ([("Add (words, places)", "CumSum (words, n1)")], "not known .looked at: CumSum placed"),
    ([("Add (words, places)", "Softmax <axis = 1> (words)")],
     "mixed by something .*Softmax placed"),
    ([("  placed = Add (words, places)", "  sum = ReduceSum (words, one)\n"
       "  placed = Div (words, sum)")], "mixed by something .*ReduceSum sum"),
    ([("(x2, one, far, one)", "(x2, none, few, one)")], "some of the positions .*Slice left"),
    ([("MatMul (merged0, wo0)\n", "Reshape (rows, merge)\n"),
      ("  told0 =", "  wide = Constant <value_ints = [-1, 8]> ()\n"
       "  flat = Reshape (merged0, wide)\n  rows = MatMul (flat, wo0)\n  told0 =")],
     "joined with other axes .*Reshape flat"),
]  # fmt: skip


@pytest.mark.parametrize(("changes", "message"), REFUSED)
def test_what_mixes_positions_is_refused(changes: list[tuple[str, str]], message: str) -> None:
    model, _ = canonical(told(maskgit(), *changes))
    with pytest.raises(NotApplicable, match=message):
        CanvasCache(steps=3).requires(model)


def test_other_hosts_and_numbers_are_refused() -> None:
    model = model_of(UPSCALER)
    write_facts(model, facts_of_graph(model, ""))
    with pytest.raises(NotApplicable, match="for masked generators, not for a latent-decoder"):
        CanvasCache(steps=3).requires(model)
    model, feed = canonical(maskgit())
    with pytest.raises(NotApplicable, match="light=-1 is not valid"):
        CanvasCache(steps=3, light=-1).requires(model)
    with pytest.raises(NotApplicable, match="6 masked positions are too few for 16 steps"):
        CanvasCache().requires(model)
    with pytest.raises(GraftlineError, match="keeps features already"):
        Pipeline.parse(f"canvas-cache{FEW} | canvas-cache{FEW}", GRAFTS).run(model, feed)
    model, _ = canonical(maskgit())
    write_ports(model, [replace(p, shape=(2, *p.shape[1:])) for p in read_ports(model)])
    with pytest.raises(NotApplicable, match="made for 2 rows; export it for any"):
        CanvasCache(steps=3).requires(model)


def test_positions_of_their_own_rows_alone_break_the_law(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keys and values that are written and not attended to."""
    real = ChosenRows._keep

    def own(self: ChosenRows, value: ir.Value, *rest: Any) -> ir.Value:
        real(self, value, *rest)
        return value

    monkeypatch.setattr(ChosenRows, "_keep", own)
    with pytest.raises(LawBroken, match="breaks the law 'kept-features' at 'scores'"):
        grafted(maskgit())
