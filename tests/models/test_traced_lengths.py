"""A model that runs other code on longer texts is refused: a graph holds one of the two."""

from __future__ import annotations

from typing import Any

import pytest

from graftline.errors import NotApplicable

torch = pytest.importorskip("torch")


def block_sparse(positions: int) -> Any:
    """Sparse attention for texts of more than (5 + 2 random blocks) 4 = 28 tokens."""
    import transformers

    config = transformers.AutoConfig.for_model(
        "big_bird", vocab_size=96, hidden_size=32, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=48, max_position_embeddings=positions, is_decoder=True, block_size=4,
        num_random_blocks=1, bos_token_id=1, eos_token_id=2, pad_token_id=0,
    )  # fmt: skip
    from graftline.models.export.export import export
    from graftline.models.export.host_model import empty_model

    return export(empty_model(config), lambda text: None)


def test_longer_texts_that_take_other_code_are_refused() -> None:
    line = "runs other code on texts of more than 28 tokens.*max_position_embeddings .now 64."
    with pytest.raises(NotApplicable, match=line) as error:
        block_sparse(64)
    assert "\n" not in str(error.value)


def test_texts_that_never_are_so_long_are_served() -> None:
    assert block_sparse(28).weights
