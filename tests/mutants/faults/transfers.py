"""States of tokens to come that are made of another row, by another matrix, or enter elsewhere."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir

from faults.mutant import Edit, Mutant, Touched, after, instead
from graftline.passes import GRAFTS
from graftline.passes.grafts.hidden_transfer import HiddenTransfer
from graftline.passes.grafts.transfers import WEIGHT
from graftline.passes.pipeline.graft import MADE_BY

GRAFT = GRAFTS["hidden-transfer"]
TRANSFERS_HEAD = {"head": "hidden-transfer"}


def _made(model: ir.Model, op: str) -> list[ir.Node]:
    """The pass's own nodes of that kind."""
    nodes = (n for n in model.graph if n.metadata_props.get(MADE_BY) == GRAFT.name())
    return [node for node in nodes if node.op_type == op]


def _swapped(model: ir.Model) -> int:
    """The first two matrices change places."""
    one, two = (model.graph.initializers[WEIGHT.format(n)] for n in (0, 1))
    one.const_value, two.const_value = two.const_value, one.const_value
    return 1


def _untransposed(model: ir.Model) -> int:
    """Matrices are read the other way round."""
    turns = [n for n in _made(model, "Transpose") if n.inputs[0] and n.inputs[0].const_value]
    for turn in turns:
        turn.outputs[0].replace_all_uses_with(turn.inputs[0])  # pyright: ignore[reportArgumentType]
    return len(turns)


def _branches_unseen(model: ir.Model) -> int:
    """The last row at the position is taken, of whatever branch."""
    (both,) = _made(model, "And")
    both.outputs[0].replace_all_uses_with(both.inputs[0])  # pyright: ignore[reportArgumentType]
    return 1


def _one_before(model: ir.Model) -> int:
    """The row is sought a position too early."""
    wanted = _made(model, "Unsqueeze")
    sought = next(n for n in wanted if n.inputs[0] and _op(n.inputs[0]) == "Sub")
    made = sought.inputs[0].producer()  # pyright: ignore[reportOptionalMemberAccess]
    assert made is not None
    once_more = ir.node("Sub", [made.outputs[0], made.inputs[1]])
    model.graph.insert_after(made, once_more)
    sought.replace_input_with(0, once_more.outputs[0])
    return 1


def _op(value: ir.Value) -> str:
    maker = value.producer()
    return "" if maker is None else maker.op_type


def _number(name: str, by: int) -> Edit:
    """A number of the pass is another."""

    def edit(model: ir.Model) -> int:
        value = model.graph.initializers[name]
        assert value.const_value is not None
        changed = value.const_value.numpy() + by
        value.const_value = ir.tensor(np.asarray(changed, np.int64), name=name)
        return 1

    return edit


def _a_block_later(real: Any, touched: Touched) -> Any:
    def behind(graft: HiddenTransfer, model: ir.Model) -> int:
        touched.count += 1
        return real(graft, model) + 1

    return behind


def _mutant(name: str, where: str, wrong: str, edit: Edit) -> Mutant:
    return Mutant(f"transfer-{name}", f"hidden-transfer: {where}", wrong, "plain", "pseudo-states",
                  after(GRAFT, edit), TRANSFERS_HEAD)  # fmt: skip


TRANSFERS = [
    _mutant("swapped", "apply", "a token has another's matrix", _swapped),
    _mutant("untransposed", "Transfers.add", "matrices lie the other way round", _untransposed),
    _mutant("of-any-branch", "_STATES", "a row of another branch is read", _branches_unseen),
    _mutant("one-before", "_ROWS", "the row before is read", _one_before),
    _mutant("one-too-early", "stand_ins", "the last token stands for one to come",
            _number("placeholders.first", -1)),
    _mutant("of-the-next", "_ENTERED", "a matrix is another token's", _number("transfer.1", 1)),
    Mutant("transfer-a-block-later", "HiddenTransfer.behind", "states enter a block later",
           "plain", "pseudo-states", instead(HiddenTransfer, "behind", _a_block_later),
           TRANSFERS_HEAD),
]  # fmt: skip
