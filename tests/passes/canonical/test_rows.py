"""Canonicalize names what mixes tokens outside attention, or sequences of a batch, and how."""

from __future__ import annotations

from collections import Counter

import pytest

from graftline.errors import NotApplicable
from graftline.passes.canonical.canonicalize import Canonicalize
from tests.passes.canonical.raw_decoder import LONGEST, decoder

SHIFT = """
    nothing_yet = Mul(first, nothing)
    moved = Concat<axis = 1>(nothing_yet, before)
    z = Add(x, moved)
"""
FIRST = "first = Slice(x, row_0, row_1, row_1)"
MIXES = {
    "ReduceMean mean_of averages the tokens of a sequence": """
        mean_of = ReduceMean<keepdims = 1>(x, one_row)
        z = Add(x, mean_of)""",
    "ReduceMean mean_of averages the sequences of a batch": """
        mean_of = ReduceMean<keepdims = 1>(x, axis_0)
        z = Add(x, mean_of)""",
    "ReduceMean mean_of averages the sequences": """
        mean_of = ReduceMean<keepdims = 1>(x)
        z = Add(x, mean_of)""",
    "ReduceMax top takes the largest of the tokens of all sequences": """
        flat_shape = Constant<value_ints = [-1, 8]>()
        all = Reshape(x, flat_shape)
        top = ReduceMax<keepdims = 1>(all, axis_0)
        z = Add(x, top)""",
    "CumSum sum adds up one after another the tokens": """
        sum = CumSum(x, one_step)
        z = Add(x, sum)""",
    "Softmax s runs over the tokens of a sequence": "s = Softmax<axis = 1>(x)\nz = Add(x, s)",
    "MatMul inner adds up the tokens of a sequence": """
        across = Transpose<perm = [0, 2, 1]>(x)
        inner = MatMul(across, x)
        z = MatMul(x, inner)""",
    "Einsum z adds up the tokens": """
        z = Einsum<equation = "bnh,bmh->bnh">(x, x)""",
    "Concat moved puts each token in the place 1 after its own": f"""
        {FIRST}
        before = Slice(x, row_0, last, row_1){SHIFT}""",
    "Pad moved moves the tokens of a sequence": """
        by = Constant<value_ints = [0, 1, 0, 0, -1, 0]>()
        moved = Pad(x, by)
        z = Add(x, moved)""",
    "Concat moved puts the tokens of a sequence in another order": """
        front = Slice(x, row_0, row_3, row_1)
        rest = Slice(x, row_3, far, row_1)
        moved = Concat<axis = 1>(rest, front)
        z = Add(x, moved)""",
    "Slice first takes a part of the tokens of a sequence": f"{FIRST}\nz = Add(x, first)",
    "Slice all_axes takes a part of the tokens of a sequence": """
        from_first = Constant<value_ints = [0, 0, 0]>()
        to_second = Constant<value_ints = [2147483647, 1, 2147483647]>()
        all_axes = Slice(x, from_first, to_second)
        z = Add(x, all_axes)""",
    "Conv s runs over the tokens": """
        across = Transpose<perm = [0, 2, 1]>(x)
        ones_of = Constant<value_ints = [8, 8, 2]>()
        kernel = ConstantOfShape<value = float[1] {0.5}>(ones_of)
        s = Conv<kernel_shape = [2], pads = [1, 0]>(across, kernel)
        back = Transpose<perm = [0, 2, 1]>(s)
        z = Add(x, back)""",
}  # fmt: skip
KEEPS = {
    "the mean of a token's own numbers": """
        mean_of = ReduceMean<keepdims = 1>(x, last)
        z = Add(x, mean_of)""",
    "parts of a token's own numbers, joined in another order": """
        front = Slice(x, row_0, row_3, last)
        rest = Slice(x, row_3, far, last)
        moved = Concat<axis = -1>(rest, front)
        z = Add(x, moved)""",
    "all tokens, taken in their order": """
        same = Slice(x, row_0, far, row_1)
        z = Add(x, same)""",
}  # fmt: skip


def mixed(text: str) -> Counter[str]:
    """The operators of a canonical decoder whose embeddings go through `text`, from x to z."""
    model = decoder(entry=f"x = Gather(embed, tokens)\n{text}\n", norm=NORM)
    Canonicalize(positions=LONGEST).apply(model)
    return Counter(node.op_type for node in model.graph)


NORM = "square = Mul(z, z)\nmean = ReduceMean(square, last)\nsafe = Add(mean, epsilon)\n"
NORM += "root = Sqrt(safe)\nunit = Div(z, root)\nn = Mul(norm_scale, unit)"


@pytest.mark.parametrize(("line", "text"), MIXES.items(), ids=MIXES.keys())
def test_what_mixes_tokens_is_named(line: str, text: str) -> None:
    with pytest.raises(NotApplicable, match=f"^{line}") as error:
        mixed(text)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("text", KEEPS.values(), ids=KEEPS.keys())
def test_what_keeps_each_token_for_itself_is_served(text: str) -> None:
    assert mixed(text)["Attention"] == 1
