"""CONTRIBUTING.md, followed in a copy of the tree: each way to add a thing is a file and a line."""

from __future__ import annotations

from pathlib import Path

from tests.core.tree_copy import changed, ran

PASS = '''"""halve-logits: a pass for this test."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from graftline.evaluate import Feed
from graftline.passes.graph.emit import Emit, new_output
from graftline.passes.pipeline.graft import Graft
from graftline.ports import Port, read_ports, write_ports


@dataclass(frozen=True)
class HalveLogits(Graft):
    """Publishes the logits times `share` beside them."""

    share: float = 0.5

    def apply(self, model: ir.Model) -> None:
        logits = next(v for v in model.graph.outputs if v.name == "logits")
        emit = Emit(model.graph, self.name())
        made = emit.op("Mul", [logits, emit.const("share", self.share, np.float32)])
        port = next(p for p in read_ports(model) if p.role == "logits")
        new_output(model.graph, made, "halved", ir.DataType.FLOAT, port.shape)
        new = Port("halved", "halved", "out", "float32", port.shape)
        write_ports(model, [*read_ports(model), new])
'''
RUN_PASS = """
from graftline.evaluate import run
from graftline.models.decoder import TinyDecoder
from graftline.passes import GRAFTS, Pipeline
from graftline.ports import read_ports
from graftline.roles import chain_feed
model = TinyDecoder().build()
feed = chain_feed(read_ports(model), 61)
reports = Pipeline.parse("halve-logits{share=0.25}", GRAFTS).run(model, feed)
got = run(model, feed)
assert abs(got["halved"] - got["logits"] / 4).max() < 1e-6
print([law.law for law in reports[0].laws])
"""
DRAFTER = '''"""Repeats the last token: a drafter for this test."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from graftline.runtimes.session import Scores
from graftline.runtimes.verdict import Verdict
from graftline.tree import Tree


@dataclass
class RepeatLast:
    """Proposes the last token again, `rows` - 1 times."""

    branching: ClassVar[bool] = False
    rows: int = 4
    signal: int = field(default=0, init=False)
    _last: int = field(default=0, init=False)

    def fork(self) -> RepeatLast:
        return RepeatLast(self.rows)

    def start(self, context: Sequence[int]) -> None:
        self._last = int(context[-1])

    def propose(self, budget: int) -> Tree:
        return Tree.chain((self._last,) * min(budget, self.rows))

    def observe(self, tree: Tree, verdict: Verdict, scores: Scores, row: int) -> None:
        self._last = verdict.next

    def prior(self, signal: int) -> Sequence[float]:
        return (0.5,) * self.rows
'''
RECIPE = """
name = "repeat-last"
system = "this test"
family = "draft store"
lossless = true
needs = []
passes = "kv-cache | tree-mask | select-rows | reduce-logits{topk=8}"
drafter = "repeat-last"
rule = "point-mass"

[options]
rows = 5
"""
RUN_RECIPE = """
import sys
import graftline
engine = graftline.load(sys.argv[1])
ask = dict(max_new_tokens=12, ignore_eos=True)
drafted = engine.generate([5, 6, 7], recipe="repeat-last", **ask)
assert drafted.tokens == engine.generate([5, 6, 7], recipe="plain", **ask).tokens
assert drafted.stats.drafted > 0
print("equal")
"""
PLUGIN = '''"""Twice a number: an operator for this test."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from graftline.plugins.spec import Array, Dims, Plan, Plugin, Tensor, Values

BODY = """
    y = Add (x, x)
"""


def reference(x: Array) -> tuple[Array, ...]:
    """The sum with itself."""
    return (2 * x,)


def plan(dims: Dims, values: Values, cdiv: Callable[[Any, int], Any]) -> Plan:
    """One program for each row."""
    return Plan({}, (dims["B"], 1))


TWICE = Plugin(
    "Twice", "twice", (Tensor("x", "T", ("B", "N")),), (Tensor("y", "T", ("B", "N")),), BODY,
    reference, plan, static=("N",),
)  # fmt: skip
'''
RUN_PLUGIN = """
import numpy as np
import onnx_ir as ir
from graftline.evaluate import run
from graftline.passes.graph.emit import Emit, new_input, new_output
from graftline.passes.graph.operators import call
from graftline.plugins import PLUGINS
plugin, x = PLUGINS["Twice"], np.arange(6, dtype=np.float32).reshape(2, 3)
graph = ir.Graph([], [], nodes=[], opset_imports={"": 24})
model = ir.Model(graph, ir_version=11)
given = new_input(graph, "x", ir.DataType.FLOAT, ["B", "N"])
(made,) = call(model, Emit(graph, "test"), plugin, [given])
new_output(graph, made, "y", ir.DataType.FLOAT, ["B", "N"])
got = run(model, {"x": x})["y"]
assert (got == plugin.reference(x)[0]).all()
print("function = reference")
"""


def test_a_pass(tree: Path) -> None:
    (tree / "passes/grafts/halve_logits.py").write_text(PASS)
    table = tree / "passes/__init__.py"
    line = "from graftline.passes.grafts.select_rows import SelectRows\n"
    added = "from graftline.passes.grafts.halve_logits import HalveLogits\n"
    changed(table, line, added + line)
    changed(table, "        SelectRows,\n", "        SelectRows,\n        HalveLogits,\n")
    assert ran(tree, RUN_PASS) == "['typed', 'wellformed', 'interface', 'alike', 'neutral']"


def test_a_drafter_and_its_recipe(tree: Path, tiny_bundle: Path) -> None:
    (tree / "runtimes/drafters/repeat_last.py").write_text(DRAFTER)
    (tree / "graftline/recipes/repeat-last.toml").write_text(RECIPE)
    table = tree / "runtimes/drafters/__init__.py"
    line = "from graftline.runtimes.drafters.sorted_draft import SortedDraft\n"
    added = "from graftline.runtimes.drafters.repeat_last import RepeatLast\n"
    changed(table, line, added + line)
    row = '    "none": NoDrafts,\n'
    changed(table, row, row + '    "repeat-last": RepeatLast,\n')
    assert ran(tree, RUN_RECIPE, str(tiny_bundle)) == "equal"


def test_a_plugin(tree: Path) -> None:
    (tree / "plugins/twice.py").write_text(PLUGIN)
    table = tree / "plugins/__init__.py"
    line = "from graftline.plugins.uniforms import UNIFORMS\n"
    changed(table, line, "from graftline.plugins.twice import TWICE\n" + line)
    changed(table, "TREE_VERIFY, UNIFORMS,", "TREE_VERIFY, TWICE, UNIFORMS,")
    assert ran(tree, RUN_PLUGIN) == "function = reference"
