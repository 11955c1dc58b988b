"""ModelOpt's parallel heads behind an EAGLE-3 layer: residual blocks that draft further tokens."""

from __future__ import annotations

from dataclasses import dataclass

from graftline.models.heads.config import Config
from graftline.models.heads.files import Taken

PREFIX = "parallel_draft_heads"


@dataclass(frozen=True)
class Parallel:
    """`heads` stacks of `layers` blocks x + silu(linear(x)) on the normed output of the last layer;
    head i drafts the token i + 1 places behind the layer's own. Each head has an lm_head, or all
    share one (`shared_lm_head`)."""

    heads: int
    layers: int
    shared_lm_head: bool


def take_parallel(
    taken: Taken, modelopt: Config, hidden: int, vocabulary: int
) -> Parallel | None:
    """The parallel heads that `eagle_config` counts; None without. Raises CheckpointError.

    Tensors: parallel.{i}.{j}.weight [H, H] and .bias [H], parallel.lm_head.weight or
    parallel.{i}.lm_head.weight [draft vocabulary, H].
    """
    steps = modelopt.whole("parallel_draft_step", 1)
    layers = modelopt.whole("parallel_draft_heads_num_layers", 1, least=0)
    if steps == 1:
        return None
    for head in range(steps - 1):
        for layer in range(layers):
            there = f"{PREFIX}.{head}.medusa_layers.{layer}.linear"
            here = f"parallel.{head}.{layer}"
            taken.take(f"{there}.weight", f"{here}.weight", [hidden, hidden])
            taken.take_if(f"{there}.bias", f"{here}.bias", [hidden])
    shared = taken.take_if(
        f"{PREFIX}.lm_head.weight", "parallel.lm_head.weight", [vocabulary, hidden]
    )
    for head in range(0 if shared else steps - 1):
        key = f"{PREFIX}.{head}.lm_head.weight"
        taken.take(key, f"parallel.{head}.lm_head.weight", [vocabulary, hidden])
    return Parallel(steps - 1, layers, shared)
