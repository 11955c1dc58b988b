"""A bundle without tokenizer.json loads, and takes and gives ids."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from graftline import load, optimize
from graftline.errors import RequestError
from graftline.models.tiny import tiny


def test_a_bundle_without_tokenizer_json_takes_ids(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = tiny("llama", tmp_path / "hf", num_hidden_layers=2)
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": "</s>"}))
    bundle = optimize(folder, tmp_path / "ids.graft", recipe="plain")
    assert list(bundle.manifest.tokenizer) == ["tokenizer/tokenizer_config.json"]
    engine = load(bundle.path)
    assert len(engine.generate([5, 6, 7], max_new_tokens=4, ignore_eos=True).tokens) == 4
    with pytest.raises(RequestError, match="this bundle has no tokenizer; give the prompt as"):
        engine.generate("hello", max_new_tokens=4)
