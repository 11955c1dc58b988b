"""The mask token of a checkpoint is found where published checkpoints name it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from gguf import GGUFWriter

from graftline.errors import CheckpointError
from graftline.facts import decoder_facts
from graftline.models import open_checkpoint
from graftline.models.gguf.file import mask_token_id
from graftline.models.mask_token import mask_token


def folder(path: Path, **files: object) -> Path:
    path.mkdir()
    for name, content in files.items():
        (path / f"{name}.json").write_text(json.dumps(content))
    return path


TOKENIZER = {
    "model": {"vocab": {"a": 0, "b": 1}},
    "added_tokens": [{"id": 2, "content": "<mask>"}],
}


def test_the_mask_token_is_read_as_published_files_name_it(tmp_path: Path) -> None:
    def found(name: str, **files: object) -> int | None:
        return mask_token(folder(tmp_path / name, **files))

    spelled = {"content": "<mask>", "lstrip": False}
    assert found("a", config={"pard_token": 7, "mask_token_id": 3}) == 7
    assert found("b", config={"ptd_token_id": 0}) == 0
    assert found("c", config={"mask_token_id": None}) is None
    known = {"tokenizer": TOKENIZER, "config": {}}
    assert found("d", tokenizer_config={"mask_token": "<mask>"}, **known) == 2
    assert found("e", tokenizer_config={}, special_tokens_map={"mask_token": spelled}, **known) == 2
    assert found("f", tokenizer_config={"mask_token": "<mask>"}) is None
    with pytest.raises(CheckpointError, match="pard_token='7' is not a token id"):
        found("g", config={"pard_token": "7"})
    assert found("h", tokenizer_config={"mask_token": "<m>"}, **known) is None


def test_a_folder_that_names_one_has_it_in_its_facts(tmp_path: Path, llama: Path) -> None:
    assert open_checkpoint(llama).host().facts.mask_token is None
    shutil.copytree(llama, tmp_path / "masked")
    file = tmp_path / "masked" / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "pard_token": 5}))
    host = open_checkpoint(tmp_path / "masked").host()
    assert host.facts.mask_token == decoder_facts(host.model).mask_token == 5


def test_a_gguf_files_own_key_is_read(tmp_path: Path) -> None:
    for mask in (7, None):
        writer = GGUFWriter(tmp_path / "m.gguf", "llama")
        if mask is not None:
            writer.add_mask_token_id(mask)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.close()
        assert mask_token_id(tmp_path / "m.gguf") == mask
