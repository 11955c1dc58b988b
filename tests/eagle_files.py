"""Files of EAGLE-3 heads as they are published, seeded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from tests.models.heads.reference_eagle3 import Eagle3, Form
from tests.models.heads.reference_layers import Sizes, drawn, state, written


def write_eagle3(
    folder: Path, hidden: int, vocabulary: int, layers: tuple[int, ...], mask: bool = False
) -> Path:
    """A head of version 3.1 over the outputs of these layers, which scores every other token;
    `mask`: P-EAGLE's."""
    sizes = Sizes(hidden=hidden, heads=2, kv_heads=1, head_size=hidden // 2, mlp=2 * hidden,
                  vocabulary=vocabulary)  # fmt: skip
    kept = torch.arange(1, vocabulary, 2)
    form = Form(sizes, taps=len(layers), host_hidden=hidden, drafted=len(kept),
                fc_norm=True, norm_output=True, mask=mask)  # fmt: skip
    tensors = state(drawn(Eagle3(form)))
    tensors["d2t"] = kept - torch.arange(len(kept))
    switches: dict[str, Any] = {
        "draft_vocab_size": form.drafted, "num_hidden_layers": 1, "fc_norm": True,
        "norm_output": True,
        "eagle_config": {"eagle_aux_hidden_state_layer_ids": list(layers)},
    }  # fmt: skip
    if mask:
        switches["mask_token_id"] = vocabulary - 1
    folder.mkdir(exist_ok=True)
    return written(folder, sizes.config(**switches), tensors)
