"""A checkpoint whose text is known: twelve tokens that follow one another for ever, and what a
host says whose answers nobody need decode."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from graftline.models.training.answers import Asked, Conversation, Reply

ROUND, VOCABULARY, HIDDEN = 12, 260, 32


def following(token: int) -> int:
    """The token after one of the twelve."""
    return (token + 1) % ROUND


def write_host(folder: Path, seed: int = 0, **options: Any) -> Path:
    """A Llama folder of two layers that add nothing; lm_head scores the follower of a token."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    sizes: dict[str, Any] = {
        "vocab_size": VOCABULARY, "hidden_size": HIDDEN, "intermediate_size": 48,
        "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
        "max_position_embeddings": 512, "tie_word_embeddings": False, "eos_token_id": 256,
    }  # fmt: skip
    model = LlamaForCausalLM(LlamaConfig(**{**sizes, **options}))
    with torch.no_grad():
        for layer in model.model.layers:
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
        table = torch.randn(VOCABULARY, HIDDEN)
        table /= table.norm(dim=-1, keepdim=True)
        model.model.embed_tokens.weight.copy_(table)
        model.lm_head.weight.zero_()
        for token in range(ROUND):
            model.lm_head.weight[following(token)] = 3.0 * table[token]
    model.save_pretrained(folder)
    return folder


def conversations(count: int) -> list[Conversation]:
    """Prompts that all differ."""
    return [Conversation((f"prompt {number}",)) for number in range(count)]


class Known:
    """Answers as the predictable host does, of `length` tokens; counts what it was asked."""

    def __init__(self, length: int = 24) -> None:
        self.length, self.asked = length, list[Asked]()

    def __call__(self, asked: Sequence[Asked]) -> Sequence[Reply | None]:
        self.asked += asked
        return [self._reply(one) for one in asked]

    def _reply(self, one: Asked) -> Reply:
        number = sum(map(ord, one.messages[-1][1]))
        ids = [number % ROUND]
        while len(ids) < 3 + self.length:
            ids.append(following(ids[-1]))
        return Reply(tuple(ids[:3]), tuple(ids[3:]), f"answer {number}")


class Stops:
    """Ctrl-C at the first line that begins like this."""

    def __init__(self, words: str, after: int = 1) -> None:
        self.words, self.after = words, after

    def __call__(self, line: str) -> None:
        self.after -= line.startswith(self.words)
        if line.startswith(self.words) and not self.after:
            raise KeyboardInterrupt
