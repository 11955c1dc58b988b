"""The nodes that find a path through a graph of vertices, as ONNX text, in which axis_0 and
last_axis are also the places 0 and -1.
"""

from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir

from graftline.best_path import lengths_to
from graftline.passes.anchors.roles import dims_of
from graftline.passes.graph.emit import Emit
from graftline.passes.graph.text import write
from graftline.path_search import PathSearch
from graftline.roles import SCORES, VERTICES

DOUBLINGS = 16
"""Of a walk over as many vertices as a signal has places for: the transitions of one row of 2 ** 16
vertices take 17 GB."""
_ALL = "end = Unsqueeze (Sub (Shape <start = 1, end = 2> (scores), one_1), axis_0)"
_EACH = "end = Sub (Unsqueeze (Cast <to = 7> (vertices), axis_1), one)"
"""The last vertex of each row."""
_WEIGHED = """
    count = Shape <start = 1, end = 2> (scores)
    rows = Shape <start = 0, end = 1> (scores)
    chance = ReduceMax <keepdims = 0> (LogSoftmax <axis = -1> (scores), last_axis)
    weighed = Mul (chance, beta)
    token = ArgMax <axis = -1, keepdims = 0> (scores)
"""
_NEXT = """
    onward = ArgMax <axis = -1, keepdims = 0> (Add (transitions, Unsqueeze (weighed, axis_1)))
    place = Range (zero, Squeeze (count, axis_0), one)
    step0 = Where (GreaterOrEqual (place, end), end, onward)
    walk0 = Expand (zero, Concat <axis = 0> (rows, one_1))
"""
"""The vertex after each, and where a walk begins: the last follows itself."""
_DOUBLED = """
    far{n} = GatherElements <axis = 1> (step{m}, walk{m})
    walk{n} = Slice (Concat <axis = 1> (walk{m}, far{n}), axis_0, count, axis_1)
    step{n} = GatherElements <axis = 1> (step{m}, step{m})
"""
"""A walk twice as long: every vertex of it, and the one that lies as far behind as it is long."""
_WALKED = """
    before = Slice (walk{n}, axis_0, last_axis, axis_1)
    at = Slice (walk{n}, one_1, count, axis_1)
    said = GatherElements <axis = 1> (token, at)
    same = Equal (said, GatherElements <axis = 1> (token, before))
    passed = Or (Or (Equal (before, end), same), Equal (said, pad))
"""
_BEGUN = """
    first = Gather <axis = 1> (transitions, zero)
    sum1 = Add (Add (first, weighed), Gather <axis = 1> (weighed, axis_0))
    where = Expand (Unsqueeze (end, axis_2), Concat <axis = 0> (rows, count, one_1))
    ending = Squeeze (GatherElements <axis = 2> (transitions, where), axis_2)
    ways = Transpose <perm = [0, 2, 1]> (transitions)
"""
_REACHED = """
    reached{n} = Add (Unsqueeze (sum{m}, axis_1), ways)
    from{n} = ArgMax <axis = 2, keepdims = 1> (reached{n})
    back{m} = Squeeze (from{n}, axis_2)
    likely{n} = Squeeze (GatherElements <axis = 2> (reached{n}, from{n}), axis_2)
    sum{n} = Add (likely{n}, weighed)
"""
"""The likeliest ways to each vertex with one vertex more on them, and the vertex before it."""
_ENDED = """
    ended{n} = Add (sum{n}, ending)
    last{n} = ArgMax <axis = 1, keepdims = 1> (ended{n})
    best{n} = ReduceMax <keepdims = 1> (ended{n}, axis_1)
"""
_LENGTH = """
    length = Add (ArgMax <axis = 1, keepdims = 1> (Div (best, powers)), one)
"""
_BACK = """
    on{n} = GatherElements <axis = 1> (back{n}, at{m})
    at{n} = Where (GreaterOrEqual (number{n}, length), last{n}, on{n})
"""
_CHOSEN = """
    said = GatherElements <axis = 1> (token, at)
    number = Range (one, Squeeze (Add (Shape <start = 1, end = 2> (at), one_1), axis_0), one)
    same = Equal (said, GatherElements <axis = 1> (token, behind))
    within = Less (number, length)
    inner = And (within, Not (Or (same, Equal (said, pad))))
    keep = Or (inner, Equal (number, length))
    passed = Or (Not (keep), LessOrEqual (end, one))
"""
_POSITIONS = """
    kept = Cast <to = 7> (Not (passed))
    rank = CumSum (kept, one)
    counts = ReduceSum <keepdims = 0> (kept, axis_1)
    most = Max (ReduceMax <keepdims = 0> (counts), one)
    position = Range (zero, most, one)
    earlier = LessOrEqual (Unsqueeze (rank, axis_1), Unsqueeze (position, axis_1))
    steps = ReduceSum <keepdims = 0> (Cast <to = 7> (earlier), axis_2)
    index = Min (steps, Sub (Shape <start = 1, end = 2> (at), one_1))
    own = Less (position, Unsqueeze (counts, axis_1))
    chosen = Where (own, GatherElements <axis = 1> (at, index), end)
    path = Unsqueeze (chosen, axis_2)
    on_path = GatherND <batch_dims = 1> (states, path)
    held = Mul (on_path, CastLike (Unsqueeze (own, axis_2), on_path))
    heard = GatherND <batch_dims = 1> (scores, path)
"""
"""Position u is where as many steps of the walk as have kept no more than u vertices end."""


def written(emit: Emit, values: dict[str, ir.Value], how: PathSearch) -> list[ir.Value]:
    """Scores, states and counts of the positions of a path; `values` are those of vertices, by
    role."""
    scores = values[SCORES]
    assert scores.dtype is not None
    kind = scores.dtype.numpy()
    given = {
        **values,
        "beta": emit.const("beta", np.asarray(how.beta, kind)),
        "pad": emit.const("pad", how.pad, np.int64),
    }
    if how.by == "lookahead":
        search = _lookahead(dims_of(scores)[1])
    else:
        given["powers"] = emit.const("powers", lengths_to(how).astype(kind))
        numbers = range(1, how.longest)
        given |= {f"number{n}": emit.const(f"number.{n}", n, np.int64) for n in numbers}
        search = _joint_viterbi(how.longest)
    text = [_EACH if VERTICES in values else _ALL, _WEIGHED, *search, _POSITIONS]
    return write(emit, "\n".join(text), given, ["heard", "held", "counts"])


def _lookahead(long: int | str | None) -> list[str]:
    """Over `long` vertices, where their number is fixed."""
    doublings = math.ceil(math.log2(max(2, long))) if isinstance(long, int) else DOUBLINGS
    doubled = [_DOUBLED.format(n=n + 1, m=n) for n in range(doublings)]
    return [_NEXT, *doubled, _WALKED.format(n=doublings)]


def _joint_viterbi(longest: int) -> list[str]:
    ahead, every = range(1, longest), range(1, longest + 1)
    names = {name: ", ".join(f"{name}{n}" for n in every) for name in ("best", "at")}
    behind = ", ".join(f"at{n}" for n in (*range(2, longest + 1), longest))
    return [
        _BEGUN,
        *(_REACHED.format(n=n + 1, m=n) for n in ahead),
        *(_ENDED.format(n=n) for n in every),
        f"best = Concat <axis = 1> ({names['best']})",
        _LENGTH,
        f"at{longest} = Identity (last{longest})",
        *(_BACK.format(n=n, m=n + 1) for n in reversed(ahead)),
        f"at = Concat <axis = 1> ({names['at']})",
        f"behind = Concat <axis = 1> ({behind})",
        _CHOSEN,
    ]
