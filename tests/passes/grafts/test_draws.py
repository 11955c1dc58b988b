"""Draws in the graph: the token at a quantile, under temperature and min-p, in two stages."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from graftline.evaluate import Array, run
from graftline.passes.grafts.draws import Draws, uniforms
from graftline.passes.grafts.reduce_logits import Groups
from graftline.passes.graph.emit import Emit, new_input, new_output
from graftline.passes.laws.fused import TIE
from graftline.plugins.uniforms import UNIFORMS
from graftline.ports import Port

FLOAT, INT64 = ir.DataType.FLOAT, ir.DataType.INT64


def graph(vocabulary: int) -> ir.Model:
    """logits, uniform -> token."""
    made = ir.Graph([], [], nodes=[], opset_imports={"": 24})
    logits = new_input(made, "logits", FLOAT, ["B", "N", vocabulary])
    settings = [new_input(made, name, FLOAT, ["B"]) for name in ("temperature", "min_p")]
    uniform = new_input(made, "uniform", FLOAT, ["B", "N"])
    emit = Emit(made, "test")
    port = Port("logits", "logits", "out", "float32", ("B", "N", vocabulary))
    token = Draws(emit, Groups(emit, logits, [port]), *settings).of(uniform)
    new_output(made, token, "token", INT64, ["B", "N"])
    return ir.Model(made, ir_version=11)


def draw(logits: Array, temperature: float, min_p: float, uniform: Array) -> Array:
    """[N] tokens for logits [N, V] and uniforms [N]."""
    feed = {
        "logits": logits[None].astype(np.float32),
        "temperature": np.asarray([temperature], np.float32),
        "min_p": np.asarray([min_p], np.float32),
        "uniform": uniform[None].astype(np.float32),
    }
    return run(graph(logits.shape[1]), feed)["token"][0]


@pytest.mark.parametrize("vocabulary", [61, 256, 3001])
@pytest.mark.parametrize(("temperature", "min_p"), [(1.0, 0.0), (0.5, 0.05), (3.0, 0.2)])
def test_a_draw_is_the_token_at_its_quantile(
    vocabulary: int, temperature: float, min_p: float
) -> None:
    random = np.random.default_rng(vocabulary)
    logits = random.normal(0, 3, (400, vocabulary)).astype(np.float32)
    uniform = random.random(400).astype(np.float32)
    tokens = draw(logits, temperature, min_p, uniform)
    scaled = logits.astype(np.float64) / temperature
    weights = np.exp(scaled - scaled.max(-1, keepdims=True))
    weights[weights < min_p] = 0
    sums = np.cumsum(weights, -1) / weights.sum(-1, keepdims=True)
    exact = np.asarray([np.searchsorted(s, u, "right") for s, u in zip(sums, uniform, strict=True)])
    assert np.sum(tokens != exact) <= 2, "near-ties alone may differ"
    for row, token in enumerate(tokens):
        below = sums[row, token - 1] if token else 0.0
        assert below - TIE <= uniform[row] <= sums[row, token] + TIE
        assert weights[row, token] > 0


@pytest.mark.parametrize("uniform", [0.0, 0.5, 1 - 2.0**-24])
def test_the_ends_of_the_range_draw_tokens_that_have_a_weight(uniform: float) -> None:
    logits = np.full((1, 700), -1e30, np.float32)
    logits[0, [3, 300, 301]] = 0.0
    token = int(draw(logits, 1.0, 0.0, np.full(1, uniform))[0])
    assert token == {0.0: 3, 0.5: 300}.get(uniform, 301)


def test_every_weight_at_one_end_of_the_vocabulary_is_reached() -> None:
    """A last group padded from 188 tokens to 256 gives none of the padding."""
    logits = np.zeros((2000, 700), np.float32)
    uniform = (np.arange(2000) + 0.5) / 2000
    tokens = draw(logits, 1.0, 0.0, uniform)
    assert set(tokens) == set(range(700))


def test_numbers_are_counted_by_chosen_tokens() -> None:
    """The draw after a node is the (ordinal + depth)th of its seed, whatever the tree."""
    made = ir.Graph([], [], nodes=[], opset_imports={"": 24})
    model = ir.Model(made, ir_version=11)
    seed, ordinal = (new_input(made, name, INT64, ["B"]) for name in ("seed", "ordinal"))
    depth = new_input(made, "depth", INT64, ["B", "N"])
    numbers = uniforms(model, Emit(made, "test"), seed, ordinal, depth)
    new_output(made, numbers, "numbers", FLOAT, ["B", "N"])
    feed = {"seed": np.asarray([5, 2**40 + 1]), "ordinal": np.asarray([0, 9])}
    depths = np.asarray([[0, 1, 1, 2], [0, 1, 2, 0]])
    got = run(model, {**feed, "depth": depths})["numbers"]
    for row, node in np.ndindex(2, 4):
        turn = feed["ordinal"][row] + depths[row, node]
        alone = UNIFORMS.reference(feed["seed"][row : row + 1], np.asarray([turn]), rows=1)[0]
        assert got[row, node] == alone[0, 0, 0]
