"""A user's own ONNX files: torch exports of tiny models with the options people choose."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

SIZES: dict[str, dict[str, Any]] = {
    "llama": {
        "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "vocab_size": 128,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64,
    },
    "gpt2": {
        "n_embd": 64, "n_layer": 2, "n_head": 4, "vocab_size": 128, "n_positions": 64,
        "bos_token_id": 1, "eos_token_id": 2,
    },
}  # fmt: skip
ROWS, PAST = 13, 5


def export(
    family: str, file: Path, attention: str, opset: int, mask: str, past: bool, positions: bool
) -> None:
    """Write a torch.onnx export. `mask` is the kind of attention_mask: pad (2D), float or bool."""
    file.write_bytes(_exported(family, attention, opset, mask, past, positions))


@cache
def _exported(
    family: str, attention: str, opset: int, mask: str, past: bool, positions: bool
) -> bytes:
    import torch
    import transformers

    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(family, **SIZES[family])
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation=attention)
    model = model.eval().float()
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(4.0) if p.ndim > 1 else p.add_(0.3 * torch.randn_like(p))
    given = feeds(mask, past, positions, empty=False)
    names, layers = list(given), config.num_hidden_layers

    class Wrapper(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def run(self, named: dict[str, Any]) -> Any:
            cached = None
            if past:
                cached = transformers.DynamicCache([
                    (named[f"past_{i}_key"], named[f"past_{i}_value"]) for i in range(layers)
                ])  # fmt: skip
            out = self.model(
                input_ids=named["input_ids"], position_ids=named.get("position_ids"),
                attention_mask=named["attention_mask"], past_key_values=cached, use_cache=past,
            )  # fmt: skip
            if not past:
                return out.logits
            kept = [t for c in out.past_key_values.layers for t in (c.keys, c.values)]
            return (out.logits, *kept)

    # torch.export names inputs by the signature of forward, which must be spelled out
    listed = ", ".join(names)
    scope: dict[str, Any] = {}
    exec(f"def forward(self, {listed}): return self.run(dict(zip({names}, [{listed}])))", scope)
    Wrapper.forward = scope["forward"]
    outputs = ["logits"] + [f"present_{i}_{x}" for i in range(layers * past) for x in "kv"]
    with torch.no_grad():
        program = torch.onnx.export(
            Wrapper(), tuple(torch.from_numpy(v.copy()) for v in given.values()), dynamo=True,
            opset_version=opset, input_names=names, output_names=outputs, verbose=False,
            dynamic_shapes={n: _dynamic(n, v, past) for n, v in given.items()},
        )  # fmt: skip
    assert program is not None
    return program.model_proto.SerializeToString()


def _dynamic(name: str, value: np.ndarray, past: bool) -> dict[int, str]:
    total = "total" if past else "N"
    if name.startswith("past"):
        return {0: "B", 2: "past"}
    if value.ndim == 4:
        return {0: "B", 2: "N", 3: total}
    return {0: "B", 1: total if name == "attention_mask" else "N"}


def feeds(mask: str, past: bool, positions: bool, empty: bool = True) -> dict[str, np.ndarray]:
    """Inputs of such a file; with an `empty` cache they are a prefill."""
    rng = np.random.default_rng(1)
    held = 0 if empty or not past else PAST
    total = ROWS + held
    out: dict[str, np.ndarray] = {"input_ids": rng.integers(3, 128, (2, ROWS))}
    if positions:
        out["position_ids"] = np.tile(np.arange(held, total), (2, 1))
    lower = np.tril(np.ones((total, total), bool))[held:]
    square = np.broadcast_to(lower, (2, 1, ROWS, total)).copy()
    out["attention_mask"] = {
        "pad": np.ones((2, total), np.int64), "bool": square,
        "float": np.where(square, 0.0, -3e38).astype(np.float32),
    }[mask]  # fmt: skip
    for i in range(2 * past):
        for part in ("key", "value"):
            cache = rng.standard_normal((2, 2, held, 16))
            out[f"past_{i}_{part}"] = cache.astype(np.float32)
    return out
