"""swap-subgraph: another decoder in the place of a denoiser's own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

import onnx_ir as ir

from graftline.errors import LawBroken, NotApplicable
from graftline.evaluate import Feed
from graftline.facts import DenoiserFacts, read_facts, write_facts
from graftline.law import Evidence
from graftline.passes.anchors.denoiser import DECODER, REPLACEMENT
from graftline.passes.anchors.reduce import weight_bytes
from graftline.passes.grafts.join import fit
from graftline.passes.graph.cut import drop_ports, hand_over
from graftline.passes.graph.emit import drop_unused
from graftline.passes.graph.ports import input_of, output_of, value_of
from graftline.passes.laws.sampled import DECODER_LATENTS, DECODER_OUTPUT
from graftline.passes.pipeline.graft import Evaluate, Graft, WeightFreeLaw
from graftline.ports import Port, read_ports, write_ports
from graftline.roles import DECODED, LATENTS

REPLACED = f"{REPLACEMENT}.{LATENTS}", f"{REPLACEMENT}.{DECODED}"


def swapped(graft: Graft, before: ir.Model, after: ir.Model) -> Evidence:
    """Nothing is left that only the decoder before was computed with."""
    image = output_of(after, DECODED, DECODER)
    own = output_of(before, DECODED, DECODER)
    if image is None or own is None:
        raise LawBroken(graft.name(), "swapped", "the image", "is no output any more")
    was, now = (_made_of(v) for v in (own, image))
    if left := sorted((was - {DECODER_OUTPUT}) & now):
        raise LawBroken(graft.name(), "swapped", f"'{left[0]}'", "is of the decoder before")
    sizes = weight_bytes(before), weight_bytes(after)
    what = f"{len(was)} values of the decoder before gave way to {len(now)}"
    return Evidence(f"{what}; {sizes[0]:,} bytes of weights became {sizes[1]:,}")


@dataclass(frozen=True)
class SwapSubgraph(Graft):
    """Puts another decoder, with the same latents in and an image of the same size out, where the
    denoiser's own was; the one before is gone.

    It adds no input. Neutral: the other decoder, called on the same latents.
    """

    weight_free: ClassVar[tuple[WeightFreeLaw, ...]] = (swapped,)

    def requires(self, model: ir.Model) -> None:
        for owner in (DECODER, REPLACEMENT):
            if input_of(model, LATENTS, owner) is None:
                raise NotApplicable(
                    f"swap-subgraph needs a {owner} beside the denoiser; name its graph in the "
                    f"spec: [{owner}]; put it before join"
                )
        for find, role in ((input_of, LATENTS), (output_of, DECODED)):
            new, old = find(model, role, REPLACEMENT), find(model, role, DECODER)
            assert new is not None
            assert old is not None
            fit(new, old, f"swap-subgraph: the replacement's {role}", f"the decoder's {role}")

    def apply(self, model: ir.Model) -> None:
        graph, facts = model.graph, read_facts(model)
        taken, old = input_of(model, LATENTS, DECODER), output_of(model, DECODED, DECODER)
        own, image = input_of(model, LATENTS, REPLACEMENT), output_of(model, DECODED, REPLACEMENT)
        assert taken is not None
        assert old is not None
        assert own is not None
        assert image is not None
        pairs = zip(own.shape or (), taken.shape or (), strict=True)
        same = {str(d): t if isinstance(t, int) else str(t) for d, t in pairs}
        own_inputs = [p for p in _inputs(model, DECODER) if p.role != LATENTS]
        graph.outputs.remove(old)
        old.name = f"{old.name}.before"
        drop_unused(model)
        hand_over(own, taken)
        write_ports(model, [p for p in read_ports(model) if p.name != DECODER_OUTPUT])
        drop_ports(model, [REPLACED[0], *(p.name for p in own_inputs)])
        for port in [p for p in read_ports(model) if p.owner == REPLACEMENT]:
            value, named = value_of(model, port), _renamed(port, same)
            value.name, value.shape = named.name, ir.Shape(list(named.shape))
        write_ports(model, [_renamed(port, same) for port in read_ports(model)])
        assert isinstance(facts, DenoiserFacts)
        write_facts(model, replace(facts, decoder=REPLACEMENT))

    def dropped(self, before: ir.Model) -> frozenset[str]:
        own = [p.name for p in _inputs(before, DECODER) if p.role != LATENTS]
        return frozenset([*own, *REPLACED, *(p.name for p in _inputs(before, REPLACEMENT))])

    def reference(self, before: ir.Model, feed: Feed, evaluate: Evaluate) -> Feed:
        """The other decoder on the same latents."""
        made = evaluate(before, feed | {REPLACED[0]: feed[DECODER_LATENTS]})
        return made | {DECODER_OUTPUT: made[REPLACED[1]]}

    def neutral(self, feed: Feed, after: ir.Model) -> Feed:
        names = {v.name: f"{v.name}".replace(DECODER, REPLACEMENT, 1) for v in after.graph.inputs}
        names[DECODER_LATENTS] = DECODER_LATENTS
        return {f"{n}": feed[other if other in feed else f"{n}"] for n, other in names.items()}


def _inputs(model: ir.Model, owner: str) -> list[Port]:
    return [p for p in read_ports(model) if p.owner == owner and p.direction == "in"]


def _renamed(port: Port, same: Mapping[str, str | int]) -> Port:
    """What was the replacement's is the decoder's, by the symbols of the decoder's latents."""
    if port.owner != REPLACEMENT:
        return port
    shape = tuple(d if isinstance(d, int) else same.get(d, d) for d in port.shape)
    name = port.name.replace(REPLACEMENT, DECODER, 1)
    return replace(port, owner=DECODER, name=name, shape=shape)


def _made_of(value: ir.Value) -> set[str]:
    """The names of the values that nodes compute one with."""
    found, todo = set[str](), [value]
    while todo:
        node = todo.pop().producer()
        if node is not None and (node.outputs[0].name or "") not in found:
            found |= {v.name or "" for v in node.outputs}
            todo += [v for v in node.inputs if v is not None]
    return found
