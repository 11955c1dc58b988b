"""TreeSample: the token that sampling chooses after every node of a drawn tree."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from graftline.plugins.spec import Array, Dims, Plan, Plugin, Tensor, Values

# Rejection without replacement replaces p by max(p - q', 0) after each failure, where q' is q
# without the failed children, renormalised to p's present mass. As max(max(p - aq, 0) - bq, 0) is
# max(p - (a + b)q, 0), and p - cq is negative already at a failed child, all that is kept of the
# past failures is `c`, the sum of the factors, and `rest`, the mass of q not yet tried.
BODY = """
    both_1 = Shape (tokens)
    by_row = Concat <axis = 0> (flat, Shape <start = 2, end = 3> (target))
    p = Reshape (target, by_row)
    q = Reshape (draft, by_row)
    tests = Gather <axis = 1> (uniforms, zero)
    node = Range (zero, Squeeze (Shape <start = 1, end = 2> (tokens)), one)
    node_column = Unsqueeze (node, axis_1)
    parent_row = Unsqueeze (parents, axis_1)
    is_child = Equal (parent_row, node_column)
    earlier = Less (node, node_column)
    elders = And (Equal (parent_row, Unsqueeze (parents, axis_2)), earlier)
    birth = ReduceSum <keepdims = 0> (Cast <to = 7> (elders), axis_2)
    birth_row = Unsqueeze (birth, axis_1)
    stages = Add (ReduceMax <keepdims = 0> (birth), one)
    open0 = Reshape (Expand (none, both_1), flat)
    ones = Mul (Cast <to = 1> (open0), zero_f)
    c0 = Identity (ones)
    rest0 = Add (ones, one_f)
    chosen, c, rest = Loop (stages, true, open0, c0, rest0) <body = stage
        (int64 turn, bool go_on, int64[R] taken, float[R] factor, float[R] left)
        => (bool goes_on, int64[R] takes, float[R] factors, float[R] leaves)
    {
        goes_on = Identity (go_on)
        tried_numbers = Cast <to = 7> (And (is_child, Equal (birth_row, turn)))
        child = ReduceSum <keepdims = 0> (Mul (tried_numbers, node), axis_2)
        exists = Reshape (Cast <to = 9> (ReduceMax <keepdims = 0> (tried_numbers, axis_2)), flat)
        pointers = Unsqueeze (child, axis_2)
        token = Reshape (GatherND <batch_dims = 1> (tokens, pointers), flat)
        token_pointers = Unsqueeze (token, axis_1)
        difference = Sub (p, Mul (Unsqueeze (factor, axis_1), q))
        residual = Max (difference, zero_f)
        mass = ReduceSum <keepdims = 0> (residual, axis_1)
        q_token = GatherND <batch_dims = 1> (q, token_pointers)
        test_q = Mul (Reshape (GatherND <batch_dims = 1> (tests, pointers), flat), q_token)
        offered = Mul (GatherND <batch_dims = 1> (residual, token_pointers), left)
        possible = Greater (q_token, zero_f)
        stands = And (Less (Mul (test_q, mass), offered), possible)
        judged = And (exists, Less (taken, zero))
        takes = Where (And (stands, judged), token, taken)
        fails = And (Not (stands), judged)
        grown = Add (factor, Div (mass, Max (left, tiny)))
        factors = Where (And (fails, Greater (left, zero_f)), grown, factor)
        leaves = Where (fails, Sub (left, q_token), left)
    }>
    below = Sub (p, Mul (Unsqueeze (c, axis_1), q))
    last_residual = Max (below, zero_f)
    has_mass = Greater (ReduceSum <keepdims = 1> (last_residual, axis_1), zero_f)
    cumulative = CumSum (Where (has_mass, last_residual, p), one)
    draw_column = Unsqueeze (Reshape (Gather <axis = 1> (uniforms, one), flat), axis_1)
    quantile = Mul (draw_column, ReduceMax (cumulative, axis_1))
    drawn = ArgMax <axis = 1, keepdims = 0> (Cast <to = 6> (Greater (cumulative, quantile)))
    choice = Reshape (Where (Less (chosen, zero), drawn, chosen), both_1)
"""


def reference(
    target: Array, draft: Array, tokens: Array, parents: Array, uniforms: Array
) -> tuple[Array, ...]:
    """As published: the residual and the rest of the draft are renormalised after each failure."""
    choice = np.zeros(tokens.shape, np.int64)
    for b, n in np.ndindex(*tokens.shape):
        p, q = target[b, n].astype(np.float64), draft[b, n].astype(np.float64)
        choice[b, n] = -1
        for child in np.flatnonzero(parents[b] == n) if q.any() else ():
            token = tokens[b, child]
            if uniforms[b, 0, child] < (p[token] / p.sum()) / (q[token] / q.sum()):
                choice[b, n] = token
                break
            p = np.maximum(p / p.sum() - q / q.sum(), 0)
            q[token] = 0
        if choice[b, n] < 0:
            cumulative = np.cumsum(p)
            quantile = uniforms[b, 1, n] * cumulative[-1]
            choice[b, n] = np.argmax(cumulative > quantile)
    return (choice,)


def plan(dims: Dims, values: Values, cdiv: Callable[[Any, int], Any]) -> Plan:
    return Plan({"N": dims["N"], "BLOCK": 2048}, (dims["B"], dims["N"]), warps=8)


TREE_SAMPLE = Plugin(
    name="TreeSample",
    module="tree_sample",
    inputs=(
        Tensor("target", "float32", ("B", "N", "V")),
        Tensor("draft", "float32", ("B", "N", "V")),
        Tensor("tokens", "int64", ("B", "N")),
        Tensor("parents", "int64", ("B", "N")),
        Tensor("uniforms", "float32", ("B", "2", "N")),
    ),
    outputs=(Tensor("choice", "int64", ("B", "N")),),
    body=BODY,
    reference=reference,
    plan=plan,
    static=("N",),
    scalars=("V",),
)
"""Multi-branch rejection without replacement (RRS, arXiv 2402.14160) at every node at once;
`TreeVerify` then follows the choices. `target` p and `draft` q are distributions over the
vocabulary after each node; q is all zero where the children are point masses, or there are none:
there the choice is one draw from p, which is that rule exactly. Siblings are numbered in the order
of their draws. uniforms[b, 0, i] tests node i, uniforms[b, 1, n] draws after node n."""
