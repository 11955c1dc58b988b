"""A user's .onnx or .pt2 file: its weights stay in their files, which never lie outside."""

from __future__ import annotations

import pickle
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import onnx_ir as ir
import pytest
from harness import assert_same_logits, feed, logits, reference, save

from graftline.facts import decoder_facts
from graftline.models import external_files, open_checkpoint
from graftline.passes.canonical.canonicalize import Canonicalize
from tests.models.refusals import Bomb, refused


@pytest.fixture(scope="module")
def onnx_file(llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("onnx")
    return save(open_checkpoint(llama).host().model, folder / "m.onnx", external="m.data")


def sizes(model: ir.Model) -> tuple[int, int, int]:
    """Vocabulary, hidden size and layers, which the canonical form says."""
    canonical = model.clone()
    Canonicalize().apply(canonical)
    facts = decoder_facts(canonical)
    return facts.vocabulary, facts.hidden, facts.layers


def test_onnx_with_external_data(onnx_file: Path, llama: Path) -> None:
    host = open_checkpoint(onnx_file).host()
    facts = host.facts
    assert sizes(host.model) == (96, 48, 3)
    assert (facts.heads, facts.kv_heads, facts.head_size) == (4, 2, 12)
    config = open_checkpoint(llama).host().facts
    assert 0 <= facts.parameters - config.parameters < 32  # rotary frequencies are in the graph
    assert external_files(host.model) == [(onnx_file.parent / "m.data").resolve()]
    assert_same_logits(logits(host.model, feed()), reference(llama, feed()))


def _relocated(source: Path, folder: Path, location: str) -> Path:
    """A copy of an ONNX file whose first external tensor claims to lie at `location`."""
    proto = onnx.load(source, load_external_data=False)
    tensor = next(t for t in proto.graph.initializer if t.external_data)
    for row in tensor.external_data:
        if row.key == "location":
            row.value = location
    shutil.copy(source.parent / "m.data", folder / "m.data")
    onnx.save(proto, folder / "m.onnx")
    return folder / "m.onnx"


@pytest.mark.parametrize("location", ["/etc/passwd", "../m.data", "a/../../m.data", "C:\\m.data"])
def test_external_data_outside_the_folder(location: str, onnx_file: Path, tmp_path: Path) -> None:
    refused(_relocated(onnx_file, tmp_path, location), "outside the model's folder")


def test_external_data_through_a_link(onnx_file: Path, tmp_path: Path) -> None:
    file = _relocated(onnx_file, tmp_path, "link.data")
    (tmp_path / "link.data").symlink_to("/etc/passwd")
    refused(file, "is a link")


def test_external_data_missing_or_short(onnx_file: Path, tmp_path: Path) -> None:
    file = _relocated(onnx_file, tmp_path, "m.data")
    data = tmp_path / "m.data"
    data.write_bytes(data.read_bytes()[:-50])
    refused(file, "m.data is truncated")
    data.unlink()
    refused(file, "its data file m.data is missing")


def test_damaged_onnx(onnx_file: Path, tmp_path: Path) -> None:
    file = tmp_path / "m.onnx"
    file.write_bytes(onnx_file.read_bytes()[: onnx_file.stat().st_size // 2])
    refused(file, "not an ONNX model|not a valid graph|an empty graph")
    file.write_bytes(b"not onnx at all")
    refused(file, "truncated or not an ONNX model")


def traced(folder: Path, forward: Callable[[Any, Any], Any], **bounds: int) -> Path:
    """A .pt2 of a module with a table, traced at 6 tokens, for lengths within `bounds`."""
    import torch

    class Rows(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = torch.nn.Embedding(16, 4)

        def forward(self, tokens: torch.Tensor) -> torch.Tensor:
            return forward(self.table(tokens), tokens.shape[1]) @ self.table.weight.T

    sizes = {0: torch.export.Dim("B"), 1: torch.export.Dim.AUTO}
    if bounds:
        sizes[1] = torch.export.Dim("N", **bounds)
    example = torch.zeros(2, 6, dtype=torch.int64)
    program = torch.export.export(
        Rows().eval(), (example,), dynamic_shapes={"tokens": sizes}, strict=False
    )
    torch.export.save(program, folder / "m.pt2")
    return folder / "m.pt2"


@pytest.mark.parametrize(
    ("forward", "bounds", "positions"),
    [
        (lambda rows, count: rows, {}, 0),
        (lambda rows, count: rows, {"max": 40}, 40),
        (lambda rows, count: rows if count <= 28 else -rows, {}, 28),
    ],
    ids=["any", "stated", "by what the code does"],
)
def test_a_pt2_is_served_as_far_as_torch_traced_it(
    tmp_path: Path, forward: Callable[[Any, Any], Any], bounds: dict[str, int], positions: int
) -> None:
    told: list[str] = []
    host = open_checkpoint(traced(tmp_path, forward, **bounds)).host(watch=told.append)
    assert host.facts.positions == positions  # type: ignore[attr-defined]
    assert any(f"served up to {positions}" in line for line in told) == bool(positions)


def test_a_pt2_of_longer_texts_only_is_refused(tmp_path: Path) -> None:
    file = traced(tmp_path, lambda rows, count: -rows if count < 5 else rows)
    refused(file, "holds for texts of 5 tokens and more, and text is decoded a token at a time")


def test_pt2_equals_the_model(tmp_path: Path, llama: Path) -> None:
    import torch
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(llama, attn_implementation="sdpa")

    class Plain(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, tokens: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
            seen = torch.ones_like(tokens)
            return self.model(
                input_ids=tokens, position_ids=positions, attention_mask=seen, use_cache=False
            ).logits

    size = {0: torch.export.Dim("B"), 1: torch.export.Dim("N")}
    example = (torch.zeros(2, 6, dtype=torch.int64), torch.arange(6).repeat(2, 1))
    program = torch.export.export(
        Plain().eval(), example, dynamic_shapes={"tokens": size, "positions": size}, strict=False
    )
    torch.export.save(program, tmp_path / "m.pt2")
    beside = [tmp_path / "tokenizer.json", tmp_path / "tokenizer_config.json"]
    for file in beside:
        file.write_text("{}")
    host = open_checkpoint(tmp_path / "m.pt2").host()
    assert host.tokenizer_files == beside
    assert sizes(host.model) == (96, 48, 3)
    assert external_files(host.model)
    assert host.weights.stored
    assert_same_logits(logits(host.model, feed()), reference(llama, feed()))
    (tmp_path / "cut.pt2").write_bytes((tmp_path / "m.pt2").read_bytes()[:-5000])
    refused(tmp_path / "cut.pt2", r"truncated or not a \.pt2 archive")
    with zipfile.ZipFile(tmp_path / "m.pt2", "a") as archive:
        archive.writestr("m/data/constants/opaque_obj_0", pickle.dumps(Bomb()))
    refused(tmp_path / "m.pt2", "opaque_obj_0', which is neither program nor tensor; refused")
