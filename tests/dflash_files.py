"""Files of DFlash heads as they are published, seeded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.models.heads.reference_dflash import DFlash, Form
from tests.models.heads.reference_layers import Sizes, drawn, state, written


def write_dflash(
    folder: Path, hidden: int, vocabulary: int, layers: tuple[int, ...], markov: str = ""
) -> Path:
    """A head over the outputs of these layers, whose block of four sees itself whole; `markov`:
    DSpark's, with a Markov head of that kind and a confidence head, or "domino", whose correction
    begins at the row behind the first draft's."""
    sizes = Sizes(hidden=hidden, heads=2, kv_heads=1, head_size=16, mlp=2 * hidden,
                  vocabulary=vocabulary)  # fmt: skip
    own: dict[str, Any] = {"target_layer_ids": list(layers), "mask_token_id": vocabulary - 1}
    form = Form(sizes, taps=len(layers), markov=markov, confidence=bool(markov))
    if markov == "domino":
        form = Form(sizes, taps=len(layers), domino=(9, 11))
        own |= {"projector_type": "domino", "gru_hidden_dim": 9, "emb_dim": 11,
                "pure_draft_prefix_len": 1}  # fmt: skip
    elif markov:
        own |= {"markov_rank": form.rank, "markov_head_type": markov,
                "enable_confidence_head": True}  # fmt: skip
    config = sizes.config(
        architectures=["DFlashDraftModel"], model_type="qwen3", num_hidden_layers=2, block_size=4,
        dflash_config=own,
    )  # fmt: skip
    return written(folder, config, state(drawn(DFlash(form))))
