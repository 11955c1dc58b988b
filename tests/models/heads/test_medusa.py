"""Medusa's files, V1, V2 and whole models: what they hold is what PyTorch makes of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from graftline.build.head_graph import head_graphs
from graftline.errors import CheckpointError
from graftline.evaluate import run
from graftline.facts import DecoderFacts
from graftline.models.decoder import TinyDecoder
from graftline.models.heads.detect import open_head
from graftline.models.heads.files import read_files
from graftline.models.heads.head import Head
from graftline.models.heads.medusa import MedusaSettings, open_medusa
from graftline.passes import GRAFTS, Pipeline
from tests.medusa_files import seeded, write_pickled, write_safe
from tests.models.heads import reference_medusa

HIDDEN, VOCABULARY = 32, 61
HOST = TinyDecoder(hidden=HIDDEN, vocabulary=VOCABULARY)


def opened(path: Path) -> Head:
    return open_medusa(read_files(path))


def scored(head: Head, states: Any) -> Any:
    """[B, N, heads, V] by the graph that is written of a head."""
    host = HOST.build()
    Pipeline.parse("anchors", GRAFTS).run(host)
    return run(head_graphs(head, host)[0], {"hidden": states})["heads.logits"]


def states() -> Any:
    return np.random.default_rng(7).standard_normal((2, 3, HIDDEN)).astype(np.float32)


@pytest.mark.parametrize(("layers", "tied"), [(1, False), (2, True), (3, False)])
@pytest.mark.parametrize("form", ["pt", "safetensors"])
def test_v1_is_what_pytorch_makes_of_it(tmp_path: Path, layers: int, tied: bool, form: str) -> None:
    torch.manual_seed(layers)
    module = reference_medusa.medusa(HIDDEN, VOCABULARY, 4, layers, tied)
    numbers = {k: v.detach().numpy().copy() for k, v in module.state_dict().items()}
    write = write_pickled if form == "pt" else write_safe
    head = opened(write(tmp_path / "head", numbers, medusa_num_heads=4, medusa_num_layers=layers))
    assert head.settings == MedusaSettings(4, layers, HIDDEN, VOCABULARY, shared=False)
    assert [str(tap) for tap in head.taps] == ["the final norm's output"]
    expected = reference_medusa.logits(module, torch.from_numpy(states())).detach().numpy()
    got = np.moveaxis(scored(head, states()), 2, 0)
    np.testing.assert_allclose(got, expected, rtol=0, atol=2e-6 * np.abs(expected).max())
    assert np.abs(got[0] - got[1]).max() > 0.1


def test_layers_that_were_saved_once_are_the_first(tmp_path: Path) -> None:
    """safetensors' save_model leaves out what is another name of the same memory."""
    module = reference_medusa.medusa(HIDDEN, VOCABULARY, 2, 2, True)
    numbers = {k: v.detach().numpy().copy() for k, v in module.state_dict().items()}
    kept = {k: v for k, v in numbers.items() if ".1.linear" not in k}
    assert len(kept) < len(numbers)
    head = opened(write_safe(tmp_path / "head", kept))
    assert any("the files hold only that one" in line for line in head.decided)
    expected = reference_medusa.logits(module, torch.from_numpy(states())).detach().numpy()
    got = np.moveaxis(scored(head, states()), 2, 0)
    np.testing.assert_allclose(got, expected, rtol=0, atol=2e-6 * np.abs(expected).max())


def test_v2_is_scored_by_the_hosts_lm_head(tmp_path: Path) -> None:
    tensors = seeded(HIDDEN, VOCABULARY, heads=5, own=False)
    head = opened(write_safe(tmp_path / "head", tensors, medusa_num_layers=1, version="2"))
    assert head.settings == MedusaSettings(5, 1, HIDDEN, 0, shared=True)
    assert head.decided[0].startswith("V2: 5 heads, scored by the host's lm_head")
    matrix = HOST.build().graph.initializers["lm_head.weight"].const_value
    assert matrix is not None
    for number, got in enumerate(np.moveaxis(scored(head, states()), 2, 0)):
        weight, bias = (tensors[f"{number}.0.linear.{part}"] for part in ("weight", "bias"))
        linear = states() @ weight.T + bias
        expected = (states() + linear / (1 + np.exp(-linear))) @ matrix.numpy().T
        np.testing.assert_allclose(got, expected, rtol=0, atol=3e-6 * np.abs(expected).max())


def test_heads_are_counted_and_not_believed(tmp_path: Path) -> None:
    """Published configs say 2 heads where the files hold 5."""
    path = write_safe(tmp_path / "head", seeded(HIDDEN, VOCABULARY, 5), medusa_num_heads=2,
                      medusa_num_layers=3)  # fmt: skip
    head = opened(path)
    assert (head.settings.heads, head.settings.layers) == (5, 1)
    assert "5 heads, as the tensors say; config.json says 2" in head.decided
    assert "layers of a head: 1, as the tensors say; config.json says 3" in head.decided


def test_the_heads_of_a_whole_model_are_found_in_it(tmp_path: Path) -> None:
    own = {f"medusa_head.{k}": v for k, v in seeded(HIDDEN, VOCABULARY, 3).items()}
    host = {"model.embed_tokens.weight": np.zeros((VOCABULARY, HIDDEN), np.float32),
            "lm_head.weight": np.zeros((VOCABULARY, HIDDEN), np.float32)}  # fmt: skip
    head = opened(write_safe(tmp_path / "head", {**own, **host}))
    assert head.settings.heads == 3
    alone = opened(write_safe(tmp_path / "alone", seeded(HIDDEN, VOCABULARY, 3)))
    np.testing.assert_array_equal(scored(head, states()), scored(alone, states()))


def test_half_precision_is_widened(tmp_path: Path) -> None:
    tensors = {k: v.astype(np.float16) for k, v in seeded(HIDDEN, VOCABULARY).items()}
    head = opened(write_safe(tmp_path / "half", tensors))
    wide = {k: v.astype(np.float32) for k, v in tensors.items()}
    other = opened(write_safe(tmp_path / "wide", wide))
    np.testing.assert_array_equal(scored(head, states()), scored(other, states()))


def _without(*keys: str) -> dict[str, Any]:
    return {k: v for k, v in seeded(HIDDEN, VOCABULARY).items() if k not in keys}


def _with(**more: Any) -> dict[str, Any]:
    return {**seeded(HIDDEN, VOCABULARY), **{k.replace("_", "."): v for k, v in more.items()}}


WRONG = np.zeros((HIDDEN, HIDDEN + 1), np.float32)


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        (_without("1.0.linear.bias"), r"tensor '1\.0\.linear\.bias' is missing"),
        (_without("1.0.linear.weight", "1.0.linear.bias", "1.1.weight"),
         r"tensor '1\.0\.linear\.weight' is missing, of 3 heads"),
        (_without("2.1.weight"), r"tensor '2\.1\.weight' is missing"),
        (_with(**{"3_1_weight": np.zeros((VOCABULARY, HIDDEN), np.float32)}),
         r"tensor '3\.1\.weight' has no place in such a head"),
        ({**_with(), "1.0.linear.weight": WRONG}, r"'1\.0\.linear\.weight' is \[32, 33\]"),
        ({"fc.weight": WRONG}, r"no tensor '0\.0\.linear\.weight'"),
        (seeded(HIDDEN, VOCABULARY, layers=2, own=False), "2 layers and no matrix of the heads"),
    ],
)  # fmt: skip
def test_files_that_are_no_whole_heads_are_refused(
    tmp_path: Path, tensors: dict[str, Any], message: str
) -> None:
    with pytest.raises(CheckpointError, match=message) as caught:
        opened(write_safe(tmp_path / "head", tensors))
    assert "\n" not in str(caught.value)


def test_they_are_known_by_their_config_or_by_their_names(tmp_path: Path) -> None:
    for place, config in (("a", {"medusa_num_heads": 3}), ("b", {})):
        head = open_head(write_safe(tmp_path / place, seeded(HIDDEN, VOCABULARY), **config))
        assert head.family == "medusa"
        sign = "medusa_num_heads in config.json" if config else "tensor '0.0.linear.weight'"
        assert head.decided[0] == f"Medusa heads, by {sign}"
    with pytest.raises(CheckpointError, match="not a draft head that graftline knows"):
        open_head(write_safe(tmp_path / "c", {"fc.weight": WRONG}))


def test_code_in_a_pickle_is_not_run(tmp_path: Path) -> None:
    import os
    import pickle

    class Wicked:
        def __reduce__(self) -> tuple[Any, tuple[str]]:
            return os.mkdir, (str(tmp_path / "ran"),)

    folder = tmp_path / "head"
    folder.mkdir()
    (folder / "medusa_lm_head.pt").write_bytes(pickle.dumps({"0.0.linear.weight": Wicked()}))
    (folder / "config.json").write_text(json.dumps({"medusa_num_heads": 1}))
    with pytest.raises(CheckpointError) as caught:
        opened(folder)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "ran").exists()


def test_a_file_that_ends_early_is_refused(tmp_path: Path) -> None:
    folder = write_safe(tmp_path / "head", seeded(HIDDEN, VOCABULARY))
    file = folder / "medusa_lm_head.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match="truncated"):
        opened(file)


def test_the_sizes_of_smollm2(tmp_path: Path) -> None:
    """V2, of the sizes of a real host: one layer of 576 and its 49,152 tokens."""
    head = opened(write_safe(tmp_path / "head", seeded(576, 0, heads=5, own=False)))
    head.check(DecoderFacts(49152, 576, 30, 9, 3, 64, 8192))
    with pytest.raises(CheckpointError, match="is 576, but the host needs 960"):
        head.check(DecoderFacts(49152, 960, 30, 9, 3, 64, 8192))
