"""Trains a small decoder for early exit, and times early-exit self-speculation beside plain.

    python tests/bench/early_exit.py train DATA.jsonl OUT [--minutes 4]
    graftline optimize OUT -o BUNDLE --recipe layer-skip --exit 2
    python tests/bench/early_exit.py time BUNDLE DATA.jsonl [--recipes layer-skip,del] [--prompts 6]

DATA has a prompt, `turns` or `prompt`, on each line; every tenth is held out. Training is
LayerSkip's (arXiv 2404.16710): blocks are dropped at random, the later the more often, and the
final norm and the head are trained on what leaves the exits too. `time` answers held-out prompts
with every recipe in turn, and prints tokens per second over plain's, whose tokens they must be.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from pathlib import Path
from typing import Any

HIDDEN, BLOCKS, VOCABULARY, CONTEXT, BATCH = 96, 12, 768, 96, 8
EXITS = (1, 2, 4)
"""Blocks behind which the head is trained, besides the last."""
DROPOUT, EXIT_WEIGHT, RATE = 0.2, 0.4, 2e-3


def texts(data: Path) -> list[str]:
    """The prompts of a file, one for each line."""
    rows = [json.loads(line) for line in data.read_text(encoding="utf-8").splitlines()]
    return ["\n".join(row["turns"]) if "turns" in row else row["prompt"] for row in rows]


def train(data: Path, out: Path, minutes: float) -> None:
    """A Llama of the checkpoint layout that transformers writes, and its tokenizer."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    torch.manual_seed(0)
    known = [text for place, text in enumerate(texts(data)) if place % 10]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # type: ignore[assignment]
    tokenizer.decoder = decoders.ByteLevel()  # type: ignore[assignment]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    learner = trainers.BpeTrainer(
        vocab_size=VOCABULARY, special_tokens=["<|end|>"], initial_alphabet=alphabet
    )
    tokenizer.train_from_iterator(known, learner)
    ids = torch.tensor([i for text in known for i in [*tokenizer.encode(text).ids, 0]])
    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=HIDDEN, intermediate_size=3 * HIDDEN,
        num_hidden_layers=BLOCKS, num_attention_heads=4, num_key_value_heads=2,
        max_position_embeddings=1024, bos_token_id=0, eos_token_id=0, tie_word_embeddings=True,
    )  # fmt: skip
    model: Any = LlamaForCausalLM(config)
    optimizer = torch.optim.AdamW(model.parameters(), RATE, weight_decay=0.1)
    began, step, loss = time.monotonic(), 0, 0.0
    while (spent := (time.monotonic() - began) / 60 / minutes) < 1:
        for group in optimizer.param_groups:
            group["lr"] = RATE * min(1.0, (step + 1) / 20) * (0.05 + 0.95 * math.cos(spent * 1.57))
        starts = torch.randint(0, len(ids) - CONTEXT - 1, (BATCH,))
        rows = torch.stack([ids[s : s + CONTEXT + 1] for s in starts])
        found = losses(model, rows)
        optimizer.zero_grad()
        found.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        step, loss = step + 1, 0.95 * loss + 0.05 * float(found.detach())
        if step % 50 == 0:
            print(f"step {step}: loss {loss / (1 - 0.95**step):.2f}", flush=True)
    model.eval().save_pretrained(out)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|end|>").save_pretrained(out)
    print(f"{len(ids)} tokens, {step} steps of {BATCH * CONTEXT} in {minutes:g} minutes: {out}")


def losses(model: Any, rows: Any) -> Any:
    """Of the last block and of the exits, with blocks dropped."""
    import torch

    inner, inputs = model.model, rows[:, :-1]
    hidden = inner.embed_tokens(inputs)
    positions = torch.arange(inputs.shape[1])[None]
    rotary, exits = inner.rotary_emb(hidden, positions), []
    for number, block in enumerate(inner.layers):
        chance = DROPOUT * (math.exp(math.log(2) * number / (BLOCKS - 1)) - 1)
        if torch.rand(()) >= chance:
            made = block(hidden, position_embeddings=rotary)
            hidden = made[0] if isinstance(made, tuple) else made
        if number + 1 in EXITS:
            exits.append(hidden)

    def cross_entropy(state: Any) -> Any:
        logits = model.lm_head(inner.norm(state)).flatten(0, 1)
        return torch.nn.functional.cross_entropy(logits, rows[:, 1:].flatten())

    early = sum(map(cross_entropy, exits)) / len(exits)
    return cross_entropy(hidden) + EXIT_WEIGHT * early


def timed(bundle: Path, data: Path, recipes: list[str], prompts: int, new: int) -> None:
    """Tokens per second of every recipe over plain's, prompts and recipes in turn."""
    import graftline

    engine = graftline.load(bundle, threads=1)
    held = [text for place, text in enumerate(texts(data)) if not place % 10][:prompts]
    seconds = dict.fromkeys(["plain", *recipes], 0.0)
    steps, made = dict.fromkeys(seconds, 0), dict.fromkeys(seconds, 0)
    for turn in range(2):  # the first to learn what drafts bring
        for text in held:
            ids = engine.encode(text)[:160]
            plain: list[int] = []
            for name in seconds:
                began = time.perf_counter()
                result = engine.generate(ids, recipe=name, max_new_tokens=new, ignore_eos=True)
                plain = plain or result.tokens
                assert result.tokens == plain, f"{name} is not plain's text"
                if turn:
                    seconds[name] += time.perf_counter() - began
                    steps[name] += result.stats.steps
                    made[name] += len(result.tokens)
    for name, spent in seconds.items():
        rate, over = made[name] / spent, seconds["plain"] / spent
        print(f"{name}: {rate:.1f} tokens/s, {over:.2f}x, {made[name] / steps[name]:.2f} a step")


def main() -> None:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    command = parser.add_subparsers(dest="command", required=True)
    training = command.add_parser("train")
    training.add_argument("data", type=Path)
    training.add_argument("out", type=Path)
    training.add_argument("--minutes", type=float, default=4.0)
    timing = command.add_parser("time")
    timing.add_argument("bundle", type=Path)
    timing.add_argument("data", type=Path)
    timing.add_argument("--recipes", default="layer-skip")
    timing.add_argument("--prompts", type=int, default=6)
    timing.add_argument("--new", type=int, default=96)
    said = parser.parse_args()
    if said.command == "train":
        train(said.data, said.out, said.minutes)
    else:
        timed(said.bundle, said.data, said.recipes.split(","), said.prompts, said.new)


if __name__ == "__main__":
    main()
