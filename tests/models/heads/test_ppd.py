"""PPD's prompt tokens as they are published: what is read, and what is not hosted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from graftline.errors import CheckpointError
from graftline.facts import DecoderFacts
from graftline.models.heads import open_head
from graftline.models.heads.ppd import PpdSettings
from tests.ppd_files import seeded, write_ppd

HIDDEN = 32
HOST = DecoderFacts(61, HIDDEN, 2, 4, 2, 16, 256)


@pytest.mark.parametrize("pickled", [False, True])
def test_rows_are_read_as_they_are(tmp_path: Path, pickled: bool) -> None:
    rows = seeded(HIDDEN, 4)
    head = open_head(write_ppd(tmp_path / "head", rows, pickled))
    assert (head.family, head.settings, head.taps) == ("ppd", PpdSettings(4, HIDDEN), ())
    assert head.decided == (
        "PPD's prompt tokens, by tensor 'prompt_embeddings'",
        "4 prompt tokens, for the tokens 2 to 5 places ahead",
    )
    np.testing.assert_array_equal(head.tensors["placeholders"].numpy(), rows)
    head.check(HOST)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"virtual_tokens_per_special_token": 3}, r"several rows for a token, whose logits"),
        ({"use_custom_lm_head": True}, r"use_custom_lm_head=True is not hosted"),
        ({"use_prefix_tuning": True}, r"use_prefix_tuning=True is not hosted"),
        ({"num_exits": 2}, r"num_exits=2 is not hosted \(states of several layers"),
        ({"vt_attention_type": "encoder"}, r"vt_attention_type='encoder' is not hosted"),
        ({"num_special_tokens": 5}, r"num_special_tokens=5, and 'prompt_embeddings' has 3 rows"),
        ({"num_special_tokens": None}, r"num_special_tokens is missing"),
        ({"twist": 1}, r"twist=1 is a key that such a head is not known to have"),
    ],
)
def test_what_is_not_hosted_is_said(tmp_path: Path, config: dict[str, Any], message: str) -> None:
    folder = write_ppd(tmp_path / "head", seeded(HIDDEN), **config)
    with pytest.raises(CheckpointError, match=message) as caught:
        open_head(folder)
    assert "adapter_config.json" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_another_models_rows_and_broken_numbers_are_refused(tmp_path: Path) -> None:
    other = open_head(write_ppd(tmp_path / "other", seeded(16)))
    with pytest.raises(CheckpointError, match=r"'prompt_embeddings' is 16, but .* needs 32"):
        other.check(HOST)
    rows = seeded(HIDDEN)
    rows[1, 3] = np.nan
    broken = open_head(write_ppd(tmp_path / "broken", rows))
    with pytest.raises(CheckpointError, match="numbers that are not finite"):
        broken.check(HOST)
