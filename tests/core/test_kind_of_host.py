"""CONTRIBUTING.md's way to add a kind of host, followed in a copy of the tree with a classifier."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir

from tests.core.tree_copy import changed, ran
from tests.passes.tiny_hosts import filled

FACTS = '''
@dataclass(frozen=True)
class ClassifierFacts(Facts):
    """A text of a known vocabulary in, a score for each class out."""

    kind: str = field(default="classifier", kw_only=True)
    vocabulary: int
    classes: int

    def told(self) -> str:
        return f"{self.classes} classes"


'''
FIND = '''"""What the input and the output of a classifier of texts are, by types and shapes."""

from __future__ import annotations

import onnx_ir as ir

from graftline.facts import ClassifierFacts
from graftline.passes.anchors.roles import (
    FLOATS, OnePass, Role, dims_of, inputs_of, mismatch,
)  # fmt: skip
from graftline.passes.graph.mismatch import Mismatch


def find_classifier(graph: ir.Graph) -> OnePass | Mismatch:
    """Ids [B, N] that a table is read at, and scores [B, classes]; or why the graph has none."""
    inputs, outputs = inputs_of(graph), list(graph.outputs)
    if len(inputs) != 1 or inputs[0].dtype != ir.DataType.INT64 or len(dims_of(inputs[0])) != 2:
        return mismatch("its inputs are not ids [B, N] alone", inputs)
    if len(outputs) != 1 or outputs[0].dtype not in FLOATS or len(dims_of(outputs[0])) != 2:
        return mismatch("its outputs are not scores [B, classes] alone", outputs)
    reads = [node for node, place in inputs[0].uses() if node.op_type == "Gather" and place == 1]
    tables = [node.inputs[0] for node in reads if node.inputs[0] is not None]
    rows = [dims_of(table)[0] for table in tables if dims_of(table)]
    classes = dims_of(outputs[0])[1]
    if len(rows) != 1 or not isinstance(rows[0], int) or not isinstance(classes, int):
        return mismatch("it has no table of a known vocabulary, or no known classes", tables)
    ids, scores = Role(inputs[0], "ids", "ids"), Role(outputs[0], "scores", "scores")
    return OnePass(ClassifierFacts(rows[0], classes), (ids,), scores)
'''
KIND = '''"""The kind of host that puts a text into one of several classes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from graftline.evaluate import Feed
from graftline.facts import ClassifierFacts, Facts
from graftline.kinds.one_pass import OnePass
from graftline.ports import Port, by_role


@dataclass(frozen=True)
class Classifier(OnePass):
    """Ids in, a score for each class out."""

    name: str = "classifier"
    output: str = "scores"

    def feed(self, ports: tuple[Port, ...], facts: Facts, seed: int) -> Feed:
        """Seeded ids, of another length with each seed."""
        assert isinstance(facts, ClassifierFacts)
        ids = np.random.default_rng(seed).integers(0, facts.vocabulary, (2, 9 + seed))
        return {by_role(ports, "ids", "in")[0].name: ids}
'''
HOST = """
<ir_version: 10, opset_import: ["" : 20]>
bag (int64[B,N] words, float[50,8] table, float[8,3] weight, int64[1] one) => (float[B,3] y)
{
  rows = Gather (table, words)
  mean = ReduceMean <keepdims = 0> (rows, one)
  hidden = Tanh (mean)
  y = MatMul (hidden, weight)
}
"""
RUN_KIND = """
import sys
import onnx_ir as ir
from typer.testing import CliRunner
from graftline import optimize
from graftline.build.check import check
from graftline.commands.cli import app
from graftline.kinds import KINDS
bundle = optimize(sys.argv[1], sys.argv[2], weights="copy")
held = {(law.graft, law.law) for law in bundle.manifest.laws if law.status == "held"}
owed = {("canonicalize-one-pass", "neutral"), ("ort-cpu", "whole"), ("export", "checkpoint")}
assert owed <= held, held
print(bundle.manifest.facts.told(), *(port.name for port in bundle.manifest.main.ports))
shown = CliRunner().invoke(app, ["inspect", sys.argv[2]])
assert "classifier" in shown.output and "scores" in shown.output, shown.output
report = check(bundle.path)
assert report.holds and any(f.what == "scores" and f.status == "held" for f in report.findings)
graph = bundle.graph("ort-cpu")
wrong = ir.load(graph)
next(node for node in wrong.graph if node.op_type == "Tanh").op_type = "Sigmoid"
ir.save(wrong, graph)
assert [(f.what, f.holds) for f in KINDS["classifier"].answers(bundle)] == [("scores", False)]
"""


def test_a_kind_of_host(tree: Path, tmp_path: Path) -> None:
    """It is told by its graph, optimized, held to the laws, shown, checked, and found wrong."""
    known = "KNOWN: Mapping[str, type[Facts]] = {"
    changed(tree / "graftline/facts.py", known, f'{FACTS}{known}"classifier": ClassifierFacts, ')
    (tree / "passes/anchors/classifier.py").write_text(FIND)
    table = tree / "passes/anchors/one_pass.py"
    line = "from graftline.passes.anchors.denoiser import find_denoiser\n"
    added = "from graftline.passes.anchors.classifier import find_classifier\n"
    changed(table, line, added + line)
    changed(table, '"denoiser": ', '"classifier": find_classifier, "denoiser": ')
    (tree / "graftline/kinds/classifier.py").write_text(KIND)
    table = tree / "graftline/kinds/__init__.py"
    line = "from graftline.kinds.decoder.kind import Decoder\n"
    changed(table, line, "from graftline.kinds.classifier import Classifier\n" + line)
    changed(table, "Denoiser(), ", "Denoiser(), Classifier(), ")
    random = np.random.default_rng(0)
    shapes = {"table": (50, 8), "weight": (8, 3)}
    numbers = {name: random.normal(size=shape) for name, shape in shapes.items()}
    host = {name: array.astype(np.float32) for name, array in numbers.items()}
    ir.save(filled(HOST, {**host, "one": np.ones(1, np.int64)}), tmp_path / "bag.onnx")
    out = str(tmp_path / "bag.graft")
    assert ran(tree, RUN_KIND, str(tmp_path / "bag.onnx"), out) == "3 classes ids scores"
