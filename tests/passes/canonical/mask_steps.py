"""A host with masks, grafted, and fed in chunks through its caches."""

from __future__ import annotations

import json

import numpy as np
import onnx_ir as ir

from graftline.evaluate import Feed, run
from graftline.passes import GRAFTS, Pipeline
from graftline.passes.grafts.masks import MASK_KEY
from graftline.passes.grafts.tree_mask import causal_mask
from graftline.ports import read_ports
from tests.passes.canonical.raw_decoder import ATTEND

FRONT = "canonicalize{positions=512} | anchors | kv-cache"
LENGTH = 92
"""Beyond 2c + 1 for every constant of the hosts, 40 being the largest."""


def grafted(model: ir.Model, text: str) -> ir.Model:
    Pipeline.parse(text, GRAFTS).run(model)
    return model


def kinds(model: ir.Model) -> list[str]:
    notes = [n.metadata_props.get(MASK_KEY) for n in model.graph if n.op_type == "Attention"]
    return [json.loads(n)["kind"] for n in notes if n]


def empty(model: ir.Model, batch: int, slots: int) -> Feed:
    """Caches full of numbers that nobody may see."""
    sizes = {"B": batch, "S": slots}
    return {
        p.name: np.full([sizes.get(str(d), d) for d in p.shape], 1e3, np.float32)
        for p in read_ports(model) if p.role in ("cache.key", "cache.value") and p.direction == "in"
    }  # fmt: skip


def stepped(model: ir.Model, given: Feed, cuts: list[int], slots: int = 128) -> np.ndarray:
    """Logits of `given`, fed in chunks through the caches."""
    held, at, out = empty(model, len(given["tokens"]), slots), 0, list[np.ndarray]()
    for rows in cuts:
        fed = {k: v[:, at : at + rows] for k, v in given.items()} | held
        fed["write_index"] = np.full(len(given["tokens"]), at)
        if any(p.name == "mask" for p in read_ports(model)):
            fed["mask"] = causal_mask(fed["write_index"], rows, slots)
        got = run(model, fed)
        out.append(got["logits"])
        held = {p.mirror: got[p.name] for p in read_ports(model) if p.mirror is not None}
        at += rows
    return np.concatenate(out, axis=1)


def close(got: np.ndarray, want: np.ndarray) -> None:
    """Equal but for sums of a few hundred fp32 products in another order."""
    np.testing.assert_allclose(got, want, rtol=0, atol=3e-6 * max(1.0, np.abs(want).max()))


def attend(text: str) -> str:
    return ATTEND.replace("heads = MatMul(weights, vv)", f"{text}\n    heads = MatMul(again, vv)")


AGAIN = """
    o_size = Squeeze(length)
    o_order = Range(zero, o_size, one_step)
    o_key = Unsqueeze(o_order, axis_0)
    o_query = Unsqueeze(o_order, one_row)
    o_ago = Sub(o_query, o_key)
    o_near = Less(o_ago, n_40)
    again = Where(o_near, weights, nothing)"""
