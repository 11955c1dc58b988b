"""What an input or output means is its role: its name may be any, to every pass and every law."""

from __future__ import annotations

import ast
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from graftline.models.decoder import TinyDecoder
from graftline.passes import GRAFTS, Pipeline
from graftline.runtimes.reference import ReferenceSession
from tests.passes.tiny_hosts import ALL, OTHER, decoder_feed, host, rename

ROOT = Path(__file__).parents[3]
STEP = "anchors | kv-cache | tree-mask | select-rows | reduce-logits{topk=4}"
CUT = "anchors | kv-cache | tap{layers=0} | cut-depth{blocks=1}"
PIPELINES = {
    "host": ALL,
    "fused": f"{STEP} | fuse-verify{{sample=true}} | fuse-draft{{width=4}} | lower-ort",
    "tensorrt": f"{STEP} | fuse-verify | fuse-draft{{width=4}} | lower-tensorrt{{dtype=fp32,"
    "capacity=64}",
    "cut": f"{CUT} | quantize{{bits=8,block=16}} | lower-ort",
}


def run_renamed(text: str, spec: TinyDecoder) -> tuple[ir.Model, dict[str, set[str]]]:
    """A pipeline run on a host whose names are changed before every pass; the laws that held."""
    model, feed = host(spec), decoder_feed(61)
    held: dict[str, set[str]] = {}
    for graft in Pipeline.parse(text, GRAFTS).grafts:
        rename(model)
        feed = {f"{OTHER}{name}": array for name, array in feed.items()}
        (report,) = Pipeline((graft,)).run(model, feed)
        held[graft.name()] = {law.law for law in report.laws}
        feed = graft.neutral(feed, model)
    rename(model)
    return model, held


@pytest.mark.parametrize("name", PIPELINES)
def test_every_pass_and_law_goes_by_roles(name: str) -> None:
    """The same laws hold, and none is left out, as on the host with its canonical names."""
    spec = TinyDecoder(layers=3)
    _, held = run_renamed(PIPELINES[name], spec)
    model = host(spec)
    reports = Pipeline.parse(PIPELINES[name], GRAFTS).run(model, decoder_feed(61))
    assert held == {r.text.partition("{")[0]: {law.law for law in r.laws} for r in reports}


def test_the_reference_session_goes_by_roles() -> None:
    model, _ = run_renamed(STEP, TinyDecoder())
    plain = host()
    Pipeline.parse(STEP, GRAFTS).run(plain)
    sessions = ReferenceSession(model, 32), ReferenceSession(plain, 32)
    found = [session.prefill([np.arange(5)]).logits for session in sessions]
    np.testing.assert_array_equal(*found)


ROLES = {
    "tokens", "positions", "mask", "write_index", "rows", "keep", "parents", "logits", "argmax",
    "topk_ids", "topk_logits", "top_gap", "entropy", "hidden", "accepted", "count", "path", "table",
}  # fmt: skip
ROOMS = ("passes", "runtimes", "graftline")


def named(tree: ast.AST) -> list[int]:
    """Lines that compare something's name with a role."""
    return [
        node.lineno
        for node in ast.walk(tree)
        if isinstance(node, ast.Compare)
        and isinstance(node.left, ast.Attribute)
        and node.left.attr == "name"
        and any(isinstance(c, ast.Constant) and c.value in ROLES for c in node.comparators)
        and not (isinstance(node.left.value, ast.Subscript) or _is_role(node.left.value))
    ]


def _is_role(value: ast.expr) -> bool:
    """`role.name`, of a Role and not of a value."""
    return isinstance(value, ast.Name) and value.id == "role"


@pytest.mark.parametrize("room", ROOMS)
def test_no_file_compares_a_name_with_a_role(room: str) -> None:
    files = [f for f in (ROOT / room).rglob("*.py") if not f.is_symlink()]
    assert files
    trees = {f.relative_to(ROOT): ast.parse(f.read_text(encoding="utf-8")) for f in files}
    assert [(str(f), line) for f, tree in trees.items() for line in named(tree)] == []


def test_a_name_that_is_compared_is_seen() -> None:
    assert named(ast.parse('x = next(v for v in inputs if v.name == "tokens")')) == [1]
    assert not named(ast.parse('x = next(p for p in ports if p.role == "tokens")'))
