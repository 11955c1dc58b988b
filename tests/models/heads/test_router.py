"""Routers as they are written: what is read, and what is not hosted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from graftline.errors import CheckpointError
from graftline.facts import DecoderFacts
from graftline.models.heads import open_head
from graftline.models.heads.router import BIAS, WEIGHT, RouterSettings
from tests.router_files import seeded, write_routers

HIDDEN, BLOCKS = 32, 4
HOST = DecoderFacts(61, HIDDEN, BLOCKS, 4, 2, 8, 256)


def test_rows_are_read_in_the_order_of_their_blocks(tmp_path: Path) -> None:
    tensors = seeded((3, 1), HIDDEN, bias=0.5)
    head = open_head(write_routers(tmp_path / "head", tensors, BLOCKS, [[3, 1], [1]]))
    assert head.family == "router"
    assert head.settings == RouterSettings((1, 3), HIDDEN, ((1, 3), (1,)))
    assert head.decided[-1] == "routers of 2 of 4 blocks, and 2 routes"
    weight, bias = (head.tensors[f"routers.{part}"].numpy() for part in ("weight", "bias"))
    for place, layer in enumerate((1, 3)):
        np.testing.assert_array_equal(weight[place], tensors[WEIGHT.format(layer)][0])
        np.testing.assert_array_equal(bias[place : place + 1], tensors[BIAS.format(layer)])
    head.check(HOST)


@pytest.mark.parametrize(
    ("layers", "config", "message"),
    [
        ((1, 3), {"num_hidden_layers": 3}, "a router of block 3, and num_hidden_layers=3"),
        ((0, 1), {}, "a router of block 0, which is always computed"),
        ((1, 3), {"routes": [[1, 2]]}, r"routes: \[1, 2\] skips block 2, which has no router"),
        ((1, 3), {"routes": [[]]}, r"routes: \[\] skips no block"),
        ((1, 3), {"routes": []}, "is not a list of lists of layers"),
        ((1, 3), {"routes": [[1, "a"]]}, "is not a list of numbers of layers"),
        ((1, 3), {"twist": 1}, "twist=1 is a key that such a head is not known to have"),
    ],
)
def test_what_is_not_hosted_is_said(
    tmp_path: Path, layers: tuple[int, ...], config: dict[str, Any], message: str
) -> None:
    given = {"routes": [[1]], **config}
    folder = write_routers(tmp_path / "head", seeded(layers, HIDDEN), BLOCKS, **given)
    with pytest.raises(CheckpointError, match=message) as caught:
        open_head(folder)
    assert "\n" not in str(caught.value)


def test_a_number_too_few_and_another_models_are_refused(tmp_path: Path) -> None:
    tensors = seeded((1, 3), HIDDEN)
    lone = {name: t for name, t in tensors.items() if name != BIAS.format(3)}
    with pytest.raises(CheckpointError, match=r"router.bias' is missing"):
        open_head(write_routers(tmp_path / "lone", lone, BLOCKS, [[1]]))
    other = open_head(write_routers(tmp_path / "other", seeded((1,), HIDDEN), 6, [[1]]))
    with pytest.raises(CheckpointError, match=r"num_hidden_layers is 6, but .* needs 4"):
        other.check(HOST)
