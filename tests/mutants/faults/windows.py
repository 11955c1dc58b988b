"""Windows and causal masks: other sizes, off by one, of another layer or batch row."""

from __future__ import annotations

import json
from collections.abc import Iterable

import numpy as np
import onnx_ir as ir

from faults.graphs import (
    above,
    attentions,
    attribute,
    constant,
    nodes,
    numbers,
    of_layers,
    op,
    rewired,
)
from faults.mutant import Edit, Mutant, after
from faults.passes import CANONICALIZE, KV, LOWER, MASK, PLAIN, TREE


def _recognised(old: int, new: int, layers: Iterable[int] | None = None) -> Edit:
    """The number is taken for another, in the mask and in what is said of it."""

    def edit(model: ir.Model) -> int:
        done = 0
        for node in of_layers(attentions(model), layers):
            says = json.loads(node.metadata_props.get(MASK, "{}"))
            if says.get("size") == old:
                node.metadata_props[MASK] = json.dumps({**says, "size": new})
            done += numbers(model, node.inputs[3:4], old, new)
        return done

    return edit


def _sized(old: int, new: int, layers: Iterable[int] | None = None) -> Edit:
    """The number is another in the mask alone."""

    def edit(model: ir.Model) -> int:
        chosen = of_layers(attentions(model), layers)
        return sum(numbers(model, n.inputs[3:4], old, new) for n in chosen)

    return edit


def _not_causal(model: ir.Model) -> int:
    return sum(n.attributes.pop("is_causal", None) is not None for n in attentions(model))


def _compares(op_type: str, wrong: str) -> Edit:
    """A comparison above the mask is another one."""

    def edit(model: ir.Model) -> int:
        done = 0
        for node in attentions(model):
            for maker in above(node.inputs[3]) if len(node.inputs) > 3 else []:
                if maker.op_type == op_type:
                    new = op(model, maker, wrong, maker.inputs)
                    new.type, new.shape = maker.outputs[0].type, maker.outputs[0].shape
                    maker.outputs[0].replace_all_uses_with(new)
                    done += 1
        return done

    return edit


def _seen_too_far(model: ir.Model) -> int:
    """A causal row sees one slot more than its own: what an earlier text left there."""
    done = 0
    for node in nodes(model, "LessOrEqual"):
        later = op(model, node, "Add", [node.inputs[1], constant(model, 1, np.int64)])
        done += rewired(node, 1, later)
    return done


def _other_row(model: ir.Model) -> int:
    """Every row of the batch gets the mask of the row opposite."""
    done, made = 0, {}
    for node in attentions(model):
        mask = node.inputs[3]
        if mask not in made:
            ends = [constant(model, [n], np.int64) for n in (-1, -(1 << 40), 0, -1)]
            made[mask] = op(model, node, "Slice", [mask, *ends])
        done += rewired(node, 3, made[mask])
    return done


def _window_of_layer(source: int, target: int) -> Edit:
    """A layer takes the mask of another."""

    def edit(model: ir.Model) -> int:
        found = attentions(model)
        if target >= len(found):
            return 0
        node, other = found[target], found[source]
        node.metadata_props[MASK] = other.metadata_props.get(MASK, "")
        mask = other.inputs[3] if len(other.inputs) > 3 else None
        if mask is None:
            node.resize_inputs(3)
            node.attributes["is_causal"] = ir.AttrInt64("is_causal", 1)
            return 1
        node.attributes.pop("is_causal", None)
        node.resize_inputs(4)
        node.replace_input_with(3, mask)
        return 1

    return edit


def _query_shifted(model: ir.Model) -> int:
    """Queries stand one position later in the mask than they do."""
    positions = next(v for v in model.graph.inputs if v.name == "positions")
    done = 0
    masked = [n.inputs[3] for n in attentions(model) if len(n.inputs) > 3]
    for node in {m for value in masked for m in above(value)}:
        axes = node.inputs[1].const_value if len(node.inputs) > 1 and node.inputs[1] else None
        queries = node.op_type == "Unsqueeze" and axes is not None and 3 in axes.numpy()
        if queries and node.inputs[0] is positions:
            later = op(model, node, "Add", [positions, constant(model, 1, np.int64)])
            done += rewired(node, 0, later)
    return done


def _lowered(new: int) -> Edit:
    def edit(model: ir.Model) -> int:
        return sum(attribute(n, "local_window_size", new) for n in attentions(model))

    return edit


def _sizes() -> list[Mutant]:
    found: list[Mutant] = []
    for new in (80, 41):
        found += [
            Mutant(
                f"window-recognised-as-{new}", "canonicalize: read_mask",
                f"a window of 40 is taken for one of {new}, everywhere",
                "window", "masks", after(CANONICALIZE, _recognised(40, new)),
            ),
            Mutant(
                f"window-{new}-in-mask-pass", "canonicalize: MaskWriter",
                f"the canonical mask is {new} wide, not 40",
                "window", "masks", after(CANONICALIZE, _sized(40, new)),
            ),
            Mutant(
                f"window-{new}-over-slots", "kv-cache: SlotMasks",
                f"the mask over cache slots is {new} wide, not 40",
                "window", "neutral", after(KV, _sized(40, new)), PLAIN,
            ),
            Mutant(
                f"window-{new}-in-tree", "tree-mask: SlotMasks",
                f"the mask over the tree is {new} wide, not 40",
                "window", "neutral", after(TREE, _sized(40, new)),
            ),
            Mutant(
                f"window-{new}-lowered", "lower-ort: group_query_attention",
                f"local_window_size is {new}, not 40",
                "window", "neutral", after(LOWER, _lowered(new)), PLAIN,
            ),
        ]  # fmt: skip
    return found


def _formulas() -> list[Mutant]:
    found: list[Mutant] = []
    for host, what, old, new in (
        ("chunk", "a chunk of 24 ends", 24, 25), ("sinks", "the 4 first positions end", 4, 3),
        ("clip", "a slope clipped at 40 ends", 40, 41),
    ):  # fmt: skip
        for pass_, word in ((CANONICALIZE, "recognised"), (KV, "over-slots"), (TREE, "in-tree")):
            options = PLAIN if pass_ is KV else {}
            law = "masks" if pass_ is CANONICALIZE else "neutral"
            found.append(
                Mutant(
                    f"{host}-{new}-{word}", f"{pass_.name()}: its formula", f"{what} at {new}",
                    host, law, after(pass_, _recognised(old, new)), options,
                )
            )  # fmt: skip
    return found


WINDOWS = [
    *_sizes(),
    Mutant(
        "window-80-in-block-3", "kv-cache: SlotMasks", "the mask of block 3 alone is 80 wide",
        "window", "masks", after(KV, _sized(40, 80, [3])), PLAIN,
    ),
    Mutant(
        "window-80-in-export", "canonicalize: read_mask",
        "a transformers model's window of 40 is taken for one of 80",
        "gemma2", "masks", after(CANONICALIZE, _recognised(40, 80)),
    ),
    Mutant(
        "window-dropped", "canonicalize: read_mask", "a local layer sees everything",
        "window", "masks", after(CANONICALIZE, _window_of_layer(0, 1)),
    ),
    Mutant(
        "window-of-a-local-layer", "canonicalize: AttentionReader.read",
        "a global layer gets the mask of a local one",
        "window", "masks", after(CANONICALIZE, _window_of_layer(1, 0)),
    ),
    Mutant(
        "not-causal", "canonicalize: AttentionReader._write", "is_causal is dropped",
        "plain", "masks", after(CANONICALIZE, _not_causal),
    ),
    Mutant(
        "blind-to-itself", "kv-cache: SlotMasks._causal", "a row does not see its own slot",
        "plain", "neutral", after(KV, _compares("LessOrEqual", "Less")), PLAIN,
    ),
    Mutant(
        "stale-slots-visible", "kv-cache: SlotMasks._causal",
        "a row sees the slot after its own, stale as it is",
        "plain", "neutral", after(KV, _seen_too_far), PLAIN,
    ),
    Mutant(
        "window-of-rows-later", "kv-cache: SlotMasks._window",
        "queries stand one position later in the mask than in the rotary embedding",
        "window", "neutral", after(KV, _query_shifted), PLAIN,
    ),
    Mutant(
        "mask-query-shifted", "canonicalize: MaskWriter._sides",
        "queries stand one position later in the mask than in the rotary embedding",
        "window", "masks", after(CANONICALIZE, _query_shifted),
    ),
    Mutant(
        "mask-of-another-batch-row", "kv-cache: SlotMasks", "each sequence gets another's mask",
        "plain", "chunked", after(KV, _other_row), PLAIN,
    ),
    Mutant(
        "tree-mask-of-another-batch-row", "tree-mask: SlotMasks",
        "each sequence gets another's tree",
        "plain", "branches", after(TREE, _other_row),
    ),
    *_formulas(),
]  # fmt: skip
