"""Mixtures of experts in a head's layer: the MLPs, and how the router chooses among them."""

from __future__ import annotations

from dataclasses import dataclass

from graftline.models.heads.block import take_mlp
from graftline.models.heads.config import Config
from graftline.models.heads.files import Taken


@dataclass(frozen=True)
class Experts:
    """`count` gated MLPs of which `chosen` are summed per token. Their weights are the softmax or,
    with `sigmoid`, the sigmoid of router.weight @ x; `normed` to a sum of 1, times `scale`. With
    `corrected` the choice adds router.bias and falls on the best `kept` of `groups` (by the sum of
    their best two). `shared`: the size of an MLP that every token takes, times
    sigmoid(shared_gate @ x) where `shared_gated`."""

    count: int
    chosen: int
    mlp: int
    sigmoid: bool
    normed: bool
    scale: float
    corrected: bool
    groups: int
    kept: int
    shared: int
    shared_gated: bool


def take_experts(
    taken: Taken, config: Config, there: str, here: str, hidden: int
) -> Experts | None:
    """The experts where `there`.gate is a router; None where the layer has a plain MLP.

    Tensors: router.weight [count, H], router.bias [count], experts.{e}.gate/up/down.weight,
    shared.gate/up/down.weight, shared_gate.weight [1, H]. Raises CheckpointError.
    """
    if not taken.files.has(f"{there}.gate.weight"):
        return None
    count = taken.files.matrix(f"{there}.gate.weight")[0]
    for key in ("num_experts", "n_routed_experts", "num_local_experts"):
        name = taken.files.called(f"{there}.gate.weight")
        config.must(key, count, f"tensor '{name}' has {count} rows")
    config.choice("topk_method", "noaux_tc", ("noaux_tc",))
    taken.take(f"{there}.gate.weight", f"{here}.router.weight", [count, hidden])
    bias = f"{there}.gate.e_score_correction_bias"
    corrected = taken.take_if(bias, f"{here}.router.bias", [count])
    mlp = config.whole("moe_intermediate_size")
    for expert in range(count):
        take_mlp(taken, f"{there}.experts.{expert}", f"{here}.experts.{expert}", hidden, mlp)
    shared, gated = _take_shared(taken, config, there, here, hidden)
    default = "sigmoid" if corrected else "softmax"
    return Experts(
        count, config.whole("num_experts_per_tok"), mlp,
        config.choice("scoring_func", default, ("sigmoid", "softmax")) == "sigmoid",
        config.flag("norm_topk_prob", True), config.number("routed_scaling_factor", 1.0), corrected,
        config.whole("n_group", 1), config.whole("topk_group", 1), shared, gated,
    )  # fmt: skip


def _take_shared(
    taken: Taken, config: Config, there: str, here: str, hidden: int
) -> tuple[int, bool]:
    """The MLP that every token takes: its size (0: none), and whether it is gated."""
    for name in ("shared_expert", "shared_experts"):
        if taken.files.has(f"{there}.{name}.gate_proj.weight"):
            size = taken.files.matrix(f"{there}.{name}.gate_proj.weight")[0]
            take_mlp(taken, f"{there}.{name}", f"{here}.shared", hidden, size)
            gate = f"{there}.{name}_gate.weight"
            return size, taken.take_if(gate, f"{here}.shared_gate.weight", [1, hidden])
    if config.raw.get("n_shared_experts") or config.raw.get("shared_expert_intermediate_size"):
        config.refuse(f"names shared experts, but the file has no '{there}.shared_expert*'")
    return 0, False
