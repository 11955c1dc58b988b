"""What the inputs and outputs of a recogniser are whose positions are vertices of a directed
acyclic graph, told by types, shapes and what is made of what.

DASpeech (Fang et al., arXiv 2310.07403) translates speech this way: a path through the vertices of
a DA-Transformer is the text, and its hidden states are what an acoustic decoder makes speech of.
"""

from __future__ import annotations

import onnx_ir as ir

from graftline.facts import DagRecogniserFacts
from graftline.owners import TARGET
from graftline.passes.anchors.denoiser import AUXILIARY, DECODER
from graftline.passes.anchors.recogniser import find_signal
from graftline.passes.anchors.roles import (
    FLOATS,
    INDICES,
    OnePass,
    Role,
    declared_role,
    dims_of,
    inputs_of,
    mismatch,
    owner_of,
    rank_of,
)
from graftline.passes.graph.mismatch import Mismatch
from graftline.roles import (
    DECODED,
    FRAMES,
    LATENTS,
    LENGTHS,
    SCORES,
    STATES,
    TRANSITIONS,
    VERTICES,
)

_SAME = frozenset({"Cast", "Identity"})


def find_dag_recogniser(graph: ir.Graph) -> OnePass | Mismatch:
    """A signal and its rows' lengths; scores [B, L, V] of the tokens of L vertices, transitions
    [B, L, L] and the states [B, L, H] that both are made of; and how many vertices each row has,
    where not all. Or why it is no such graph. Names do not count. A graph beside it makes speech of
    a path's states."""
    heard = find_signal([v for v in inputs_of(graph) if owner_of(v) == TARGET])
    if isinstance(heard, Mismatch):
        return heard
    outputs = [v for v in graph.outputs if owner_of(v) == TARGET]
    tables = [v for v in outputs if v.dtype in FLOATS and rank_of(v) == 3]
    vertices = [v for v in outputs if v.dtype in INDICES and rank_of(v) == 1]
    if len(tables) != 3 or len(vertices) > 1:
        why = (
            "its outputs are not scores [B, L, V], transitions [B, L, L] and states [B, L, H] of "
            "vertices, and how many each row has"
        )
        return mismatch(why, outputs)
    told = _told_apart(tables)
    if isinstance(told, Mismatch):
        return told
    scores, transitions, states = told
    vocabulary, width = dims_of(scores)[2], dims_of(states)[2]
    if not isinstance(vocabulary, int) or vocabulary < 2:
        return mismatch("the number of tokens is not fixed", [scores])
    if not isinstance(width, int):
        return mismatch("the width of the states is not fixed", [states])
    beside = _decoder(graph, width)
    if isinstance(beside, Mismatch):
        return beside
    others = [Role(transitions, TRANSITIONS, TRANSITIONS), Role(states, STATES, STATES)]
    others += [Role(v, VERTICES, VERTICES) for v in vertices]
    rest = [v for v in outputs if v not in (*tables, *vertices)]
    others += [Role(v, AUXILIARY, f"{AUXILIARY}.{n}") for n, v in enumerate(rest)]
    facts = DagRecogniserFacts(vocabulary, heard.channels, states=width)
    inputs, outs = beside
    return OnePass(facts, (*heard.roles, *inputs), Role(scores, SCORES, SCORES), (*others, *outs))


def _told_apart(tables: list[ir.Value]) -> tuple[ir.Value, ir.Value, ir.Value] | Mismatch:
    """Scores, transitions and states: the states are what the others are made of, and transitions
    go from each vertex to each."""
    sources = {v: _source(v) for v in tables}
    above = {v: _above(sources[v]) for v in tables}
    states = [v for v in tables if all(sources[v] in above[o] for o in tables if o is not v)]
    if len(states) != 1:
        why = "none of them is the states that the scores and the transitions are made of"
        return mismatch(why, tables)
    others = [v for v in tables if v is not states[0]]
    square = [v for v in others if not isinstance(last := dims_of(v)[2], int)
              or last == dims_of(v)[1]]  # fmt: skip
    if len(square) != 1:
        why = "which of them are transitions, from each vertex to each, is open"
        return mismatch(why, others)
    (scores,) = (v for v in others if v is not square[0])
    return scores, square[0], states[0]


def _source(value: ir.Value) -> ir.Value:
    """What an output passes on as it is."""
    node = value.producer()
    while node is not None and node.op_type in _SAME and node.inputs[0] is not None:
        value = node.inputs[0]
        node = value.producer()
    return value


def _above(value: ir.Value) -> set[ir.Value]:
    """All that a value is made of."""
    found, todo = set[ir.Value](), [value]
    while todo:
        node = todo.pop().producer()
        fresh = [v for v in node.inputs if v is not None and v not in found] if node else []
        found.update(fresh)
        todo += fresh
    return found


def _decoder(graph: ir.Graph, width: int) -> tuple[list[Role], list[Role]] | Mismatch:
    """The inputs and outputs of a graph beside the recogniser: states [B, U, H] of positions and
    how many each row has, and the spectrogram [B, F, C] or waveform [B, C, T] that it makes of
    them, with how many frames each row has; nothing where there is no such graph."""
    inputs = [v for v in inputs_of(graph) if owner_of(v) == DECODER]
    outputs = [v for v in graph.outputs if owner_of(v) == DECODER]
    if not outputs:
        return [], []
    given = [v for v in inputs if v.dtype in FLOATS and rank_of(v) == 3]
    given = [v for v in given if declared_role(v) == LATENTS] or given
    lengths = [v for v in inputs if v.dtype in INDICES and rank_of(v) == 1]
    if len(given) != 1 or len(lengths) != 1 or len(inputs) != 2:
        why = "the decoder's inputs are not states [B, U, H] and how many of them each row has [B]"
        return mismatch(why, inputs)
    if dims_of(given[0])[2] != width:
        return mismatch(f"the decoder takes other states than the graph's, of {width}", given)
    made = [v for v in outputs if v.dtype in FLOATS and rank_of(v) == 3]
    frames = [v for v in outputs if v.dtype in INDICES and rank_of(v) == 1]
    if len(made) != 1 or len(frames) > 1 or len(outputs) != len(made) + len(frames):
        why = (
            "the decoder's outputs are not a spectrogram [B, F, C] or waveform [B, C, T], and how "
            "many frames each row has"
        )
        return mismatch(why, outputs)
    roles = [(given[0], LATENTS), (lengths[0], LENGTHS), (made[0], DECODED)]
    roles += [(v, FRAMES) for v in frames]
    named = [Role(v, role, f"{DECODER}.{role}", DECODER) for v, role in roles]
    return named[:2], named[2:]
