"""A graph in two files: each node in one of them, and both together are the graph."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest

from graftline import load_decoder, optimize
from graftline.build.split import split
from graftline.errors import CheckpointError, NotApplicable
from tests.commands.calling import call, refused
from tests.kinds.latent_decoders import VOCODER, write

SPEAKS = """
<ir_version: 10, opset_import: ["" : 20]>
speaks (int64[B,N] ids, float[11,6] table, float[6,6] mix, float[8,6,7] enter, float[8,4,8] up,
        float[1,4,5] leave) => (float[B,1,1,T] wave)
{
  rows = Gather (table, ids)
  turned = Transpose <perm = [0, 2, 1]> (rows)
  scores = MatMul (rows, turned)
  share = Softmax <axis = -1> (scores)
  seen = MatMul (share, rows)
  mixed = MatMul (seen, mix)
  features = Transpose <perm = [0, 2, 1]> (mixed)
  h0 = Conv <pads = [3, 3]> (features, enter)
  a0 = LeakyRelu <alpha = 0.1> (h0)
  h1 = ConvTranspose <strides = [4], pads = [2, 2]> (a0, up)
  last = Conv <pads = [2, 2]> (h1, leave)
  made = Tanh (last)
  axis = Constant <value = int64[1] {1}> ()
  wave = Unsqueeze (made, axis)
}
"""
"""Ids that attend to one another, and a vocoder behind them, in the manner of VITS."""


def test_both_files_are_the_graph(tmp_path: Path) -> None:
    file = write(SPEAKS, tmp_path / "speaks.onnx")
    made = split(file, tmp_path / "parts")
    assert made.shape == ("B", 6, "N")
    assert made.value.startswith("MatMul") or made.value.startswith("Transpose")
    (field,) = made.fields
    assert (field.ratio, field.before, field.behind) == (4, 4, 4)
    parts = [ir.load(path) for path in (made.before, made.decoder)]
    nodes = [[n.op_type for n in part.graph if n.op_type != "Constant"] for part in parts]
    assert nodes[0][:5] == ["Gather", "Transpose", "MatMul", "Softmax", "MatMul"]
    assert sorted(nodes[0] + nodes[1]) == sorted(
        n.op_type for n in ir.load(file).graph if n.op_type != "Constant"
    )
    ids = np.random.default_rng(0).integers(0, 11, (2, 70))
    run = [onnxruntime.InferenceSession(str(f)) for f in (file, made.before)]
    whole: Any = run[0].run(None, {"ids": ids})[0]
    latents: Any = run[1].run(["latents"], {"ids": ids})[0]
    engine = load_decoder(optimize(made.decoder, tmp_path / "x.graft", passes="window").path)
    told = "a waveform of 1 channel, 4 times as long as its latents of 6 channels"
    assert engine.facts.told() == told
    np.testing.assert_allclose(engine.decode(latents), whole, atol=1e-5)
    pieces = list(engine.stream_decode(latents, window=12))
    assert len(pieces) > 5
    np.testing.assert_allclose(np.concatenate(pieces, axis=3), whole, atol=1e-5)


def test_what_has_no_such_decoder_is_refused(tmp_path: Path) -> None:
    late = SPEAKS.replace("(h1, leave)", "(wide, leave)").replace(
        "  last", "  one = Softmax <axis = 2> (h1)\n  wide = Mul (h1, one)\n  last"
    )
    with pytest.raises(NotApplicable, match=r"depends on all latents.*\(looked at: "):
        split(write(late, tmp_path / "late.onnx"), tmp_path / "parts")
    assert not (tmp_path / "parts").exists()
    made = split(write(SPEAKS, tmp_path / "speaks.onnx"), tmp_path / "parts")
    with pytest.raises(CheckpointError, match=r"before.onnx exists; name another folder"):
        split(tmp_path / "speaks.onnx", made.before.parent)


def test_the_command(tmp_path: Path) -> None:
    file = write(SPEAKS, tmp_path / "speaks.onnx")
    result = call("split", file, "-o", tmp_path / "parts")
    assert result.exit_code == 0, result.output
    assert "4 elements for each latent, which depend on 4 in front and 4 behind" in result.output
    assert (tmp_path / "parts" / "decoder.onnx").is_file()
    assert "exists" in refused("split", file, "-o", tmp_path / "parts")


def test_a_vocoder_alone_has_the_earliest_cut(tmp_path: Path) -> None:
    """Everything behind the first value that all goes through is the decoder."""
    made = split(write(VOCODER, tmp_path / "v.onnx"), tmp_path / "parts")
    before = [n.op_type for n in ir.load(made.before).graph]
    assert sorted(before) == ["Add", "Conv", "Conv"]
