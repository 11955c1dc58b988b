"""The README's blocks that are marked to run do run, one after another, in an empty folder."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.tiny_checkpoints import write_tokenizer

ROOT = Path(__file__).parents[2]
BLOCK = re.compile(r"<!-- run -->\n```(\w+)\n(.*?)```", re.DOTALL)


def blocks() -> list[tuple[str, str]]:
    return BLOCK.findall((ROOT / "README.md").read_text(encoding="utf-8"))


def write_checkpoint(folder: Path) -> None:
    """A Hugging Face folder of a few kilobytes under the name of the README's model."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=260, hidden_size=32, intermediate_size=48, num_hidden_layers=3,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=512,
        eos_token_id=256, bos_token_id=256, tie_word_embeddings=True,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)


@pytest.mark.slow
def test_the_readmes_blocks_run(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "SmolLM2-135M-Instruct")
    write_tokenizer(tmp_path / "SmolLM2-135M-Instruct")
    bin_folder = tmp_path / "bin"
    bin_folder.mkdir()
    (bin_folder / "graftline").write_text(f'#!/bin/sh\nexec {sys.executable} -m graftline "$@"\n')
    (bin_folder / "graftline").chmod(0o755)
    path = f"{bin_folder}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "PYTHONPATH": str(ROOT)}
    assert {language for language, _ in blocks()} == {"bash", "python"}
    for language, text in blocks():
        command = ["bash", "-euo", "pipefail"] if language == "bash" else [sys.executable]
        done = subprocess.run(
            [*command, "-c", text], cwd=tmp_path, env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, f"{text}\n{done.stdout}\n{done.stderr}"
    assert (tmp_path / "figures.json").is_file()


def test_the_readme_lists_every_recipe_and_command() -> None:
    from graftline.commands.cli import app
    from graftline.recipe import all_recipes

    text = (ROOT / "README.md").read_text(encoding="utf-8")
    for one in all_recipes():
        assert f"`{one.name}`" in text
    for command in app.registered_commands:
        assert command.callback is not None
        assert command.callback.__name__ in text
