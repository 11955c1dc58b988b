"""Exits of decoders whose blocks are not all alike, or not in a row, as their files say them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from graftline.build.optimize import optimize
from tests.free_engine import free
from tests.generated.decoder import generate
from tests.generated.reference import Reference
from tests.generated.settings import Layer, Settings

FULL, NEAR = Layer(), Layer("window", 6)
HOSTS = {
    "parallel": Settings(layers=(FULL,) * 3, parallel=True),
    "mixed": Settings(layers=(NEAR, FULL, NEAR, FULL), place="sandwich", tied=True),
}


@pytest.mark.parametrize("name", HOSTS)
def test_tokens_are_those_of_the_file(name: str, tmp_path: Path) -> None:
    host = HOSTS[name]
    reference = Reference.write(generate(host), tmp_path / "host.onnx")
    bundle = optimize(tmp_path / "host.onnx", tmp_path / "a", recipe="layer-skip", exits=(2,))
    held = {(row.graft, row.law) for row in bundle.manifest.laws if row.status == "held"}
    assert {("rest-2", "joined"), ("rest-2", "resumed"), ("exit-2", "prefix")} <= held
    prompt = np.random.default_rng(3).integers(3, host.vocabulary, 9).tolist()
    result = free(bundle.path).generate(prompt, max_new_tokens=16, ignore_eos=True)
    assert result.stats.drafted > 3
    for place, token in enumerate(result.tokens):
        logits = reference.logits(np.asarray([prompt + result.tokens[:place]]))[0, -1]
        assert logits.max() - logits[token] < 1e-4
