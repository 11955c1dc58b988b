"""A near miss of each recogniser: which node it is, and why it was not taken."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from graftline.errors import NotApplicable
from graftline.passes.anchors.anchors import Blocks, find_blocks
from graftline.passes.canonical.canonicalize import Canonicalize, infer_types
from graftline.passes.canonical.entry.logits import Ends, find_ends
from graftline.passes.canonical.entry.roles import Role, role_of
from graftline.passes.canonical.norms.find import Norm, find_norm
from graftline.passes.canonical.opset.opset import open_graph
from graftline.passes.graph.mismatch import Mismatch, refusal
from tests.passes.canonical.raw_decoder import ATTEND, HEAD, INPUTS, MASK, NORM, decoder


def refused(**pieces: str) -> str:
    """The line that refuses a host."""
    with pytest.raises(NotApplicable) as error:
        Canonicalize().apply(decoder(**pieces))
    line = str(error.value)
    assert "\n" not in line
    return line


# norms


def norm_of(text: str) -> Norm | Mismatch:
    """What is found at the mean of the first norm."""
    model = decoder(norm=text)
    open_graph(model)
    infer_types(model)
    means = [n for n in model.graph if n.op_type in ("ReduceMean", "ReduceSumSquare")]
    return find_norm(means[0])


def test_a_norm_is_found() -> None:
    assert isinstance(norm_of(NORM), Norm)


@pytest.mark.parametrize(
    ("old", "new", "node", "reason"),
    [
        ("Pow(x, two)", "Abs(x)", "ReduceMean mean", "averages what is no square"),
        ("Pow(x, two)", "Mul(x, norm_scale)", "ReduceMean mean", "averages what is no square"),
        ("Add(mean, epsilon)", "Add(mean, mean)", "Add safe", "no constant epsilon"),
        ("Sqrt(safe)", "Log(safe)", "Add safe", "x is not divided by the root"),
        ("Mul(x, over)", "Mul(n0, over)", "Sqrt root", "x is not divided by the root"),
        ("ReduceMean(square, last)", "ReduceMean(square, one_row)", "ReduceMean mean",
         "averages over other axes than the last"),
    ],
)  # fmt: skip
def test_norms_that_are_nearly_norms(old: str, new: str, node: str, reason: str) -> None:
    assert old in NORM
    text = NORM.replace(old, new)
    if "n0" in text:
        text = "n0 = Neg(x)\n" + text
    found = norm_of(text)
    assert isinstance(found, Mismatch)
    assert (found.node, reason in found.reason) == (node, True), found


def test_a_sum_of_squares_over_another_count() -> None:
    text = """
        sum = ReduceSumSquare(x, last)
        mean = Div(sum, two)
        safe = Add(mean, epsilon)
        root = Sqrt(safe)
        n0 = Div(x, root)
        n = Mul(n0, norm_scale)
    """
    found = norm_of(text)
    assert isinstance(found, Mismatch)
    assert found.text == "ReduceSumSquare sum: the sum of squares of 8 numbers is divided by 2"


# attention


@pytest.mark.parametrize(
    ("pieces", "node", "reason"),
    [
        ({"attend": ATTEND.replace("Mul(scores, scale)", "Mul(scores, scores)")}, "Mul scaled",
         "no product of queries and keys"),
        ({"attend": ATTEND.replace("Add(scaled, bias)", "Exp(scaled)")}, "Exp biased",
         "no product of queries and keys"),
        ({"attend": ATTEND.replace("<axis = -1>", "<axis = 2>")}, "Softmax weights",
         "softmax runs over axis 2 of scores"),
        ({"attend": "vn = Neg(vv)\n" + ATTEND.replace("(weights, vv)", "(weights, vn)")},
         "MatMul heads", "values are scaled before attention"),
        ({"mask": MASK.replace("Where(see, nothing, lowest)", "Where(see, nothing, nothing)")},
         "MatMul heads", "the mask hides nothing"),
    ],
)  # fmt: skip
def test_attentions_that_are_nearly_attentions(
    pieces: dict[str, str], node: str, reason: str
) -> None:
    line = refused(**pieces)
    assert reason in line
    assert node in line


def test_one_attention_that_is_none_beside_one_that_is() -> None:
    """It is refused as what it nearly is, not as something that mixes tokens."""
    extra = """
        yt = Transpose<perm = [0, 2, 1]>(y)
        pairs = MatMul(y, yt)
        warped = Exp(pairs)
        shares = Softmax<axis = -1>(warped)
        mixed = MatMul(shares, y)
        y2 = Add(y, mixed)
    """
    line = refused(head=extra + HEAD.replace("MatMul(y,", "MatMul(y2,"))
    assert line.startswith("an attention is not understood: a softmax over what is no product of")
    assert line.endswith("(looked at: Exp warped)")


def test_an_operand_that_is_no_heads_says_where_the_way_to_them_ends() -> None:
    squared = "kp = Transpose<perm = [0, 1, 3, 2]>(kk)\n kt = Mul(kp, kp)"
    line = refused(attend=ATTEND.replace("kt = Transpose<perm = [0, 1, 3, 2]>(kk)", squared))
    assert "an attention operand cannot be traced to heads [B, heads, N, D]" in line
    assert "Mul kt: combines 2 activations" in line


def test_a_mask_by_an_operator_without_rule_names_it() -> None:
    text = MASK.replace("see = Cast<to = 9>(lower)", """
        past = Cast<to = 9>(lower)
        size = Squeeze(length)
        order = Range(zero, size, one_step)
        pairs = Einsum<equation = "i,j->ij">(order, order)
        rest = Mod(pairs, window)
        near = Less(rest, offset)
        see = And(past, near)
    """)  # fmt: skip
    assert (
        "a mask is written in a way that cannot be followed: no rule for it "
        "(looked at: Einsum pairs)"
    ) in refused(mask=text)


# ends and inputs


def test_an_output_without_head_says_what_makes_it() -> None:
    model = decoder(head=HEAD.replace("logits = MatMul(y, head)", """
        z = MatMul(y, head)
        logits = Softmax(z)
    """))
    found = find_ends(model.graph)
    assert isinstance(found, Mismatch)
    assert "output logits: made by Softmax logits, not by a head's matrix" in found.reason
    assert isinstance(find_ends(decoder().graph), Ends)


def test_a_graph_without_ids_says_why_each_input_holds_none() -> None:
    inputs = [
        ir.Value(name="x", type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape(["B", 8])),
        ir.Value(name="i", type=ir.TensorType(ir.DataType.INT64), shape=ir.Shape(["B", "N"])),
    ]
    found = find_ends(ir.Graph(inputs, [], nodes=[], opset_imports={"": 24}))
    assert isinstance(found, Mismatch)
    assert "input x: holds floats, not ids; input i: no Gather reads it as indices" in found.reason


def test_an_input_that_fits_no_role_says_what_it_was_held_against() -> None:
    extra = "odd1 = Neg(odd)\n odd2 = Cast<to = 1>(odd1)\n odd3 = Unsqueeze(odd2, last)\n"
    model = decoder(
        inputs=f"{INPUTS}, int64[B,N] odd", head=f"{extra} y1 = Add(y, odd3)\n"
        + HEAD.replace("MatMul(y,", "MatMul(y1,"),
    )  # fmt: skip
    odd, tokens = model.graph.inputs[2], model.graph.inputs[0]
    found = role_of(odd, tokens)
    assert isinstance(found, Mismatch)
    assert found.node == "Neg odd1"
    assert "as positions: it reaches no angle and no table" in found.reason
    assert "as a mask: it is not summed, compared" in found.reason
    assert isinstance(role_of(model.graph.inputs[1], tokens), Role)


def test_every_input_that_is_not_understood_is_named() -> None:
    with pytest.raises(NotApplicable) as error:
        Canonicalize().apply(decoder(
            inputs=f"{INPUTS}, float[B,8] one_of, float[B,8] other",
            entry="x0 = Gather(embed, tokens)\n a = Add(one_of, other)\n b = Unsqueeze(a, one_row)"
            "\n x = Add(x0, b)",
        ))  # fmt: skip
    line = str(error.value)
    assert "input one_of [B, 8]" in line
    assert "input other [B, 8]" in line


# blocks


def canonical() -> ir.Model:
    model = decoder()
    Canonicalize().apply(model)
    return model


def test_blocks_are_found() -> None:
    assert isinstance(find_blocks(canonical()), Blocks)


def test_a_graph_without_head_says_where_it_ends() -> None:
    model = canonical()
    head = next(n for n in model.graph if n.outputs[0].name == "logits")
    head.op_type = "Mul"
    found = find_blocks(model)
    assert isinstance(found, Mismatch)
    assert found.node.startswith("Mul")
    assert found.reason.startswith("no lm_head found")


def test_tokens_that_index_no_table_say_what_reads_them() -> None:
    model = canonical()
    tokens = next(v for v in model.graph.inputs if v.name == "tokens")
    gather = next(n for n in tokens.consumers() if n.op_type == "Gather")
    gather.op_type = "GatherND"
    found = find_blocks(model)
    assert isinstance(found, Mismatch)
    assert (found.node[:8], found.reason[:18]) == ("GatherND", "no embedding found")


# the line


def test_a_refusal_gives_the_first_reasons_each_with_its_nodes() -> None:
    same = [Mismatch(f"Softmax {n}", "a softmax over queries") for n in range(30)]
    long = Mismatch("MatMul x", "so " * 200)
    more = [Mismatch("A a", "third"), Mismatch("B b", "fourth"), Mismatch("C c", "fifth")]
    line = str(refusal("an attention is not understood", [*same, long, *more]))
    assert line.startswith(
        "an attention is not understood: Softmax 0, Softmax 1 and 28 more: a softmax over queries; "
        "MatMul x: so so"
    )
    assert line.endswith("...; A a: third; and 2 other reasons")
    assert len(line) < 500


def test_one_reason_for_all_is_said_once_with_its_nodes() -> None:
    found = [Mismatch(f"Softmax {n}", "a softmax over queries") for n in range(3)]
    error = refusal("an attention is not understood", found)
    assert error.nodes == ("Softmax 0", "Softmax 1", "Softmax 2")
    assert str(error) == (
        "an attention is not understood: a softmax over queries (looked at: Softmax 0, Softmax 1, "
        "Softmax 2)"
    )


def test_a_softmax_that_is_no_attention_stops_nothing() -> None:
    """A router's softmax beside attention: a mismatch that nobody needs to hear of."""
    router = """
        two_ways = MatMul(y, w_two)
        shares = Softmax<axis = -1>(two_ways)
        added = MatMul(shares, types)
        y2 = Add(y, added)
    """
    model = decoder(head=router + HEAD.replace("MatMul(y,", "MatMul(y2,"))
    Canonicalize().apply(model)
    assert [n.op_type for n in model.graph].count("Attention") == 1
    assert np.any([n.op_type == "Softmax" for n in model.graph])
