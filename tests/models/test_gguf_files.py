"""GGUF files as people have them: what the model they were made from computes, or one line."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGMLQuantizationType as Blocks
from gguf import GGUFReader, GGUFWriter
from gguf_writing import finish, rounded, tensors, write_gguf
from harness import feed, logits, reference

from graftline.models import open_checkpoint
from graftline.models.gguf.file import GgufCheckpoint
from graftline.models.tiny import tiny
from tests.exports import wide
from tests.models.refusals import refused

LONG = feed(rows=48)
"""Longer than the original lengths of the scalings here."""


def close(file: Path, folder: Path) -> Path:
    """The file computes what transformers computes from the folder; returns the converted one."""
    host = open_checkpoint(file).host()
    got, want = logits(host.model, LONG), reference(folder, LONG)
    np.testing.assert_allclose(got, want, atol=2e-5)
    return GgufCheckpoint(file).folder()


def llama3_factors(size: int, rope: dict[str, Any]) -> Any:
    """rope_freqs.weight as llama.cpp's converter writes it."""
    rows: list[float] = []
    original = rope["original_max_position_embeddings"]
    low, high = original / rope["low_freq_factor"], original / rope["high_freq_factor"]
    for i in range(0, size, 2):
        length = 2 * math.pi * rope["rope_theta"] ** (i / size)
        if length < high:
            rows.append(1.0)
        elif length > low:
            rows.append(rope["factor"])
        else:
            smooth = original / length - rope["low_freq_factor"]
            smooth /= rope["high_freq_factor"] - rope["low_freq_factor"]
            rows.append(1 / ((1 - smooth) / rope["factor"] + smooth))
    return np.asarray(rows, np.float32)


LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 500.0, "factor": 8.0, "low_freq_factor": 1.0,
    "high_freq_factor": 4.0, "original_max_position_embeddings": 64,
}  # fmt: skip


def test_rope_freqs_of_llama_3_1(tmp_path: Path) -> None:
    folder = tiny("llama", tmp_path / "hf", rope_parameters=LLAMA3, num_hidden_layers=2)
    factors = llama3_factors(12, LLAMA3)
    assert len({*factors.tolist()}) > 2  # kept, scaled, and in between
    file = write_gguf(folder, tmp_path / "m.gguf", rope_freqs__weight=factors)
    made = json.loads((close(file, folder) / "config.json").read_text())
    assert made["architectures"] == ["LlamaForCausalLM"]
    short = write_gguf(folder, tmp_path / "short.gguf", rope_freqs__weight=factors[:4])
    refused(short, r"'rope_freqs\.weight' does not hold 6 positive factors")


SCALINGS = {
    "linear": {"rope_type": "linear", "factor": 4.0},
    "yarn": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16},
    "longrope": {
        "rope_type": "longrope", "factor": 4.0, "original_max_position_embeddings": 64,
        "attention_factor": 1.25, "short_factor": [1.0, 1.1, 1.2, 1.3, 1.4, 1.5],
        "long_factor": [2.0, 3.0, 4.0, 5.0, 6.0, 7.0],
    },
}  # fmt: skip


@pytest.mark.parametrize("kind", SCALINGS)
def test_rope_scaling_keys(kind: str, tmp_path: Path) -> None:
    rope = {"rope_theta": 1e4, **SCALINGS[kind]}
    folder = tiny("qwen3", tmp_path / "hf", rope_parameters=rope, num_hidden_layers=2)

    def more(writer: GGUFWriter) -> None:
        key = "qwen3.rope.scaling."
        writer.add_string(f"{key}type", kind)
        if kind != "longrope":
            writer.add_float32(f"{key}factor", 4.0)
        else:
            writer.add_float32(f"{key}attn_factor", 1.25)
        if kind != "linear":
            original = rope["original_max_position_embeddings"]
            writer.add_uint32(f"{key}original_context_length", original)

    extra = {
        f"rope_factors_{name}__weight": np.asarray(rope[f"{name}_factor"], np.float32)
        for name in ("long", "short")
        if kind == "longrope"
    }
    file = write_gguf(folder, tmp_path / "m.gguf", more, **extra)
    close(file, folder)
    if kind == "longrope":
        assert open_checkpoint(file).host().facts.positions == 64


def test_what_a_file_says_and_transformers_does_not_read_is_refused(tmp_path: Path) -> None:
    folder = tiny("llama", tmp_path / "hf", num_hidden_layers=2)

    def broken(name: str, words: str, more: Any = None, **extra: Any) -> None:
        refused(write_gguf(folder, tmp_path / f"{name}.gguf", more, **extra), words)

    broken("a", r"'rope\.scaling\.type' = 'new'", lambda w: w.add_string(
        "llama.rope.scaling.type", "new"
    ))  # fmt: skip
    broken("b", r"'logit_scale' = 0\.5 has no place in transformers' LlamaConfig",
           lambda w: w.add_logit_scale(0.5))  # fmt: skip
    broken("c", r"'attention\.sliding_window' = 16", lambda w: w.add_sliding_window(16))
    broken("d", r"'some\.new\.key' = 3", lambda w: w.add_uint32("llama.some.new.key", 3))
    broken("e", r"tensor 'blk\.0\.attn_q\.bias' has no place",
           blk__0__attn_q__bias=np.ones(48, np.float32))  # fmt: skip
    broken("f", r"general\.type is 'adapter'", lambda w: w.add_type("adapter"))
    neutral = write_gguf(folder, tmp_path / "g.gguf", lambda w: w.add_causal_attention(True))
    close(neutral, folder)


def test_keys_that_transformers_leaves_out_reach_the_config(tmp_path: Path) -> None:
    """Its table has no head size for qwen3, and takes the class's default 128."""
    folder = tiny("qwen3", tmp_path / "hf", num_hidden_layers=2, head_dim=24)
    close(write_gguf(folder, tmp_path / "m.gguf"), folder)


def test_matrices_are_what_their_blocks_hold(tmp_path: Path) -> None:
    folder = tiny("llama", tmp_path / "hf", **wide("llama"), intermediate_size=96)
    file = write_gguf(folder, tmp_path / "m.gguf", blocks=Blocks.Q4_1)
    rounded(folder, Blocks.Q4_1)
    close(file, folder)


def test_every_end_of_a_turn_stops(tmp_path: Path) -> None:
    folder = tiny("llama", tmp_path / "hf", num_hidden_layers=2)

    def more(writer: GGUFWriter) -> None:
        writer.add_eot_token_id(7)
        writer.add_uint32("tokenizer.ggml.eom_token_id", 8)
        writer.add_uint32("tokenizer.ggml.strange", 1)

    said: list[str] = []
    host = open_checkpoint(write_gguf(folder, tmp_path / "m.gguf", more)).host(watch=said.append)
    assert host.generation["eos_token_id"] == [2, 7, 8]
    assert any("not read: tokenizer.ggml.strange" in line for line in said)


def test_a_file_beside_another_models_tokenizer(tmp_path: Path) -> None:
    from graftline.runtimes.text.tokenizer import Tokenizer

    folder = tiny("llama", tmp_path / "hf", num_hidden_layers=2)
    file = write_gguf(folder, tmp_path / "m.gguf")
    (tmp_path / "tokenizer.json").write_text("{}")
    (tmp_path / "config.json").write_text('{"model_type": "gpt2"}')
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "T5Tokenizer"}')
    made = Tokenizer.from_folder(GgufCheckpoint(file).folder())
    assert made.encode("b12") == [7, 3, 4]  # digits alone, though there is a merge "1 2"


def split(folder: Path, to: Path, count: int) -> list[Path]:
    """The model in parts, as llama-gguf-split writes them: all metadata in the first."""
    config = json.loads((folder / "config.json").read_text())
    whole = GGUFReader(write_gguf(folder, to / "whole.gguf"))
    rows = list(tensors(folder, config).items())
    files: list[Path] = []
    for part in range(count):
        files.append(to / f"m-{part + 1:05}-of-{count:05}.gguf")
        writer = GGUFWriter(files[-1], "llama")
        if part == 0:
            for name, field in whole.fields.items():
                if not name.startswith(("GGUF.", "general.architecture")):
                    inner = field.types[-1] if len(field.types) > 1 else None
                    writer.add_key_value(name, field.contents(), field.types[0], sub_type=inner)
        writer.add_uint16("split.no", part)
        writer.add_uint16("split.count", count)
        for name, value in rows[part::count]:
            writer.add_tensor(name, value)
        finish(writer)
    return files


def test_parts_are_read_together(tmp_path: Path) -> None:
    folder = tiny("llama", tmp_path / "hf", num_hidden_layers=2)
    files = split(folder, tmp_path, 3)
    close(files[1], folder)
    other = files[2].rename(tmp_path / "other.gguf")
    refused(other, r"its split\.count says that it is one of 3 parts; restore the names")
    refused(files[0], r"part of a model in 3 files, 1 of them missing, first m-00003-of-00003")
