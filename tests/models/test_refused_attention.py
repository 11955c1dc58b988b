"""What a model's attention does that ONNX Attention and a cache cannot hold is refused by name."""

from __future__ import annotations

import pytest

from graftline.errors import NotApplicable

torch = pytest.importorskip("torch")


def test_values_of_another_width_than_keys_are_refused() -> None:
    from graftline.models.export.host_model import _attention

    query, key, value = (torch.zeros(1, 2, 5, width) for width in (16, 16, 12))
    with pytest.raises(NotApplicable, match="keys of 16 numbers a head and values of 12"):
        _attention(torch.nn.Identity(), query, key, value, None)


def test_tensors_besides_the_mask_are_refused() -> None:
    from graftline.models.export.host_model import _attention

    heads = torch.zeros(1, 2, 5, 16)
    with pytest.raises(NotApplicable, match="attention takes s_aux, which ONNX Attention lacks"):
        _attention(torch.nn.Identity(), heads, heads, heads, None, s_aux=torch.zeros(2))
