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
    zero = Constant <value = int64 {0}> ()
    one = Constant <value = int64 {1}> ()
    none = Constant <value = int64 {-1}> ()
    zero_f = Constant <value = float {0.0}> ()
    one_f = Constant <value = float {1.0}> ()
    tiny = Constant <value = float {1e-30}> ()
    true = Constant <value = bool {1}> ()
    flat = Constant <value_ints = [-1]> ()
    first_axis = Constant <value_ints = [1]> ()
    second_axis = Constant <value_ints = [2]> ()
    words_1 = Shape <start = 2, end = 3> (target)
    both_1 = Shape (tokens)
    rows_1 = Shape <start = 1, end = 2> (tokens)
    rows = Squeeze (rows_1)
    by_row = Concat <axis = 0> (flat, words_1)
    p = Reshape (target, by_row)
    q = Reshape (draft, by_row)
    tests_at = Constant <value = int64 {0}> ()
    tests = Gather <axis = 1> (uniforms, tests_at)
    draws_at = Constant <value = int64 {1}> ()
    draws = Gather <axis = 1> (uniforms, draws_at)
    node = Range (zero, rows, one)
    node_column = Unsqueeze (node, first_axis)
    parent_row = Unsqueeze (parents, first_axis)
    parent_column = Unsqueeze (parents, second_axis)
    is_child = Equal (parent_row, node_column)
    siblings = Equal (parent_row, parent_column)
    earlier = Less (node, node_column)
    elders = And (siblings, earlier)
    elder_numbers = Cast <to = 7> (elders)
    birth = ReduceSum <keepdims = 0> (elder_numbers, second_axis)
    birth_row = Unsqueeze (birth, first_axis)
    last_birth = ReduceMax <keepdims = 0> (birth)
    stages = Add (last_birth, one)
    no_token = Expand (none, both_1)
    open0 = Reshape (no_token, flat)
    zeros = Cast <to = 1> (open0)
    ones = Mul (zeros, zero_f)
    c0 = Identity (ones)
    rest0 = Add (ones, one_f)
    chosen, c, rest = Loop (stages, true, open0, c0, rest0) <body = stage
        (int64 turn, bool go_on, int64[R] taken, float[R] factor, float[R] left)
        => (bool goes_on, int64[R] takes, float[R] factors, float[R] leaves)
    {
        goes_on = Identity (go_on)
        at_turn = Equal (birth_row, turn)
        is_tried = And (is_child, at_turn)
        tried_numbers = Cast <to = 7> (is_tried)
        weighted = Mul (tried_numbers, node)
        child = ReduceSum <keepdims = 0> (weighted, second_axis)
        there = ReduceMax <keepdims = 0> (tried_numbers, second_axis)
        exists_2 = Cast <to = 9> (there)
        exists = Reshape (exists_2, flat)
        pointers = Unsqueeze (child, second_axis)
        token_2 = GatherND <batch_dims = 1> (tokens, pointers)
        test_2 = GatherND <batch_dims = 1> (tests, pointers)
        token = Reshape (token_2, flat)
        test = Reshape (test_2, flat)
        token_pointers = Unsqueeze (token, first_axis)
        factor_column = Unsqueeze (factor, first_axis)
        removed = Mul (factor_column, q)
        difference = Sub (p, removed)
        residual = Max (difference, zero_f)
        mass = ReduceSum <keepdims = 0> (residual, first_axis)
        r_token = GatherND <batch_dims = 1> (residual, token_pointers)
        q_token = GatherND <batch_dims = 1> (q, token_pointers)
        test_q = Mul (test, q_token)
        threshold = Mul (test_q, mass)
        offered = Mul (r_token, left)
        passes = Less (threshold, offered)
        possible = Greater (q_token, zero_f)
        undecided = Less (taken, zero)
        stands = And (passes, possible)
        judged = And (exists, undecided)
        accepts = And (stands, judged)
        takes = Where (accepts, token, taken)
        fails_here = Not (stands)
        fails = And (fails_here, judged)
        some_left = Greater (left, zero_f)
        grows = And (fails, some_left)
        divisor = Max (left, tiny)
        step = Div (mass, divisor)
        grown = Add (factor, step)
        factors = Where (grows, grown, factor)
        shrunk = Sub (left, q_token)
        leaves = Where (fails, shrunk, left)
    }>
    c_column = Unsqueeze (c, first_axis)
    taken_off = Mul (c_column, q)
    below = Sub (p, taken_off)
    last_residual = Max (below, zero_f)
    last_mass = ReduceSum <keepdims = 1> (last_residual, first_axis)
    has_mass = Greater (last_mass, zero_f)
    drawn_from = Where (has_mass, last_residual, p)
    cumulative = CumSum (drawn_from, one)
    total = ReduceMax (cumulative, first_axis)
    draw_rows = Reshape (draws, flat)
    draw_column = Unsqueeze (draw_rows, first_axis)
    quantile = Mul (draw_column, total)
    above = Greater (cumulative, quantile)
    above_numbers = Cast <to = 6> (above)
    drawn = ArgMax <axis = 1, keepdims = 0> (above_numbers)
    undrawn = Less (chosen, zero)
    choice_rows = Where (undrawn, drawn, chosen)
    choice = Reshape (choice_rows, both_1)
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
