"""A spec that is written is the spec that is read."""

from __future__ import annotations

from pathlib import Path

import pytest

from graftline.models.spec import Inputs, Outputs, Part, Spec, read_spec, spec_text
from graftline.sampling.chunks import Chunks
from graftline.sampling.spec import Sampling


@pytest.mark.parametrize(
    "spec",
    [
        Spec(),
        Spec(sampling=Sampling("flow", "flow-match", 1, shift=3.0)),
        Spec(
            Inputs("x", 'a "quoted" name', ("z", "größe 😀")), Outputs("noise"),
            Sampling("v", "ddim", 1, spacing="trailing", clip=1.0, beta_end=0.0131),
            Part("decoder.onnx", "z", 0.18215, -0.1), Part("decoder.onnx"),
        ),
        Spec(
            sampling=Sampling("x0", "consistency", 2, sigmas=(80.0, 1.5), sigma_min=0.01),
            chunks=Chunks(4, "z", "level", 0.1),
        ),
    ],
)  # fmt: skip
def test_a_written_spec_is_read_as_it_was(tmp_path: Path, spec: Spec) -> None:
    for part in (spec.decoder, spec.replacement):
        if part is not None:
            (tmp_path / part.graph).touch()
    (tmp_path / "spec.toml").write_text(spec_text(spec), encoding="utf-8")
    found = read_spec(tmp_path / "spec.toml")
    assert (found.inputs, found.outputs, found.sampling, found.chunks) == (
        spec.inputs, spec.outputs, spec.sampling, spec.chunks,
    )  # fmt: skip
    assert (found.decoder is None) == (spec.decoder is None)
    if found.decoder is not None and spec.decoder is not None:
        assert found.decoder.graph == str(tmp_path / spec.decoder.graph)
        assert (found.decoder.scale, found.decoder.shift) == (0.18215, -0.1)
