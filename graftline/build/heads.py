"""A draft head that `optimize` is given: read, checked against its host, and made a host."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir

from graftline.build.head_graph import head_graphs, widened
from graftline.build.head_plan import NEED, HeadPlan
from graftline.build.head_within import graph_within
from graftline.bundle.manifest import EXPORT, stage_name
from graftline.errors import CheckpointError, GraftlineError
from graftline.exits import ADAPTER
from graftline.facts import DraftHeadFacts, decoder_facts, read_facts
from graftline.files import file_state
from graftline.head_notes import PLACEHOLDERS, TapReading
from graftline.models.heads.detect import open_head
from graftline.models.heads.head import FINAL, Head
from graftline.models.heads.hydra import LAYERS, HydraSettings, is_prefixed
from graftline.models.heads.kangaroo import FAMILY, KangarooSettings
from graftline.models.heads.m2r2 import FAMILY as M2R2
from graftline.models.heads.m2r2 import AcceleratorSettings
from graftline.models.heads.medusa import MedusaSettings
from graftline.models.heads.mtp import by_depth
from graftline.models.heads.router import FAMILY as ROUTER
from graftline.models.heads.router import RouterSettings
from graftline.models.host import Host
from graftline.owners import HEAD, head_owner
from graftline.passes import GRAFTS
from graftline.passes.anchors.anchors import with_role
from graftline.passes.grafts.draft_heads import POSTNORM
from graftline.passes.grafts.head_parts import Linear
from graftline.passes.grafts.placeholders import embeddings_graph
from graftline.passes.grafts.tap import Tap
from graftline.passes.graph.weights import lazy, tensor_of
from graftline.passes.pipeline.graft import Graft
from graftline.passes.pipeline.pipeline import Pipeline
from graftline.ports import FEATURES, HELD, ROUTERS, by_role, read_ports
from graftline.recipe import Recipe, recipe
from graftline.tensors import Widened, file_of, numbers

if TYPE_CHECKING:
    from graftline.models.heads.eagle_host import Shared

FLOAT = ir.DataType.FLOAT
Watch = Callable[[str], None]
RECIPES: Mapping[str, str] = {
    "dflash": "dflash", "domino": "domino", "dspark": "dspark", "eagle": "eagle",
    "eagle3": "eagle-3", "fspad": "fspad", "hidden-transfer": "hidden-transfer",
    "hydra": "hydra", "jetspec": "jetspec", "kangaroo": "kangaroo", "lora-drop": "lora-drop",
    "m2r2": "m2r2", "medusa": "medusa", "mtp": "mtp", "peagle": "p-eagle", "ppd": "ppd",
    "router": "first",
}  # fmt: skip
"""The recipe of a family of heads, where none is chosen (see `recipe_of`)."""
EAGLES = ("eagle", "eagle3", "fspad", "mtp", "peagle")
BLOCKS = ("dflash", "domino", "dspark", "jetspec")
"""Families that draft a block over a context of features."""
UNBUILT: Mapping[str, str] = {
    "dflash2": "its convolutions mix the rows of a block, and caches hold each row by itself",
}
"""Families that are read and not built, and why."""
DECODERS = (*EAGLES, *BLOCKS)
"""Families that are decoders of their own."""
EMBEDDED = "ppd"
"""The family that is embeddings for the target's own pass, and no graph."""
SAME, THIN = "in the target's precision", "and stay fp32"
EXITING: Mapping[str, str] = {
    FAMILY: f"an adapter is part of the target's exit, {SAME}",
    M2R2: f"accelerators are part of the target's exit, {THIN}",
}
"""Families that draft behind an exit of the target, and why they take no precision of their own."""
CORRECTING = "lora-drop"
"""The family that stands in for blocks of the target."""
ENTERING = "hidden-transfer"
"""The family whose states enter the target's own pass at a middle block."""
FORETELLING: Mapping[str, str] = {EMBEDDED: "placeholders", ENTERING: "hidden-transfer"}
"""Families that give the target ids which foretell tokens, and the pass by which."""
ON_TARGET: Mapping[str, str] = {
    EMBEDDED: f"its rows are embeddings for the target's own pass, {SAME}",
    **EXITING,
    CORRECTING: f"corrections are part of a route, {THIN}",
    ENTERING: f"its matrices are part of the target's own pass, {SAME}",
    ROUTER: f"routers read the target's own step, {SAME}",
}
"""Families that passes on the target put into its own graphs: no stage of theirs is opened. Why
they take no precision of their own."""
FINAL_TAP, OWN_TAPS, OWN_LAYER = "tap{layers=norm}", "head-features", "head-prefix"
"""The pass that brings out what most heads read, the one for what a head itself names, and the one
for what a layer of its own makes of that."""


def open_draft_head(path: str, say: Watch) -> Head:
    """The head at a path; `say` is told what was decided about its files. Raises CheckpointError.
    """
    say(f"reading the draft head {path}")
    head = open_head(path)
    for line in head.decided:
        say(line)
    if head.family not in RECIPES:
        raise CheckpointError(
            f"{path}: a head of the family '{head.family}', which is read and not yet built: "
            f"{UNBUILT[head.family]}; graftline builds {', '.join(RECIPES)}"
        )
    return head


def head_hosts(
    head: Head, canonical: ir.Model, config: Mapping[str, Any], say: Watch
) -> dict[str, Host]:
    """The head as hosts of their own, by the names of their stages, none where it is embeddings;
    `config` is the target's. Raises CheckpointError where its sizes are not the target's, or its
    numbers not finite."""
    say("checking the draft head's sizes and numbers")
    facts = decoder_facts(canonical)
    head.check(facts)
    within = graph_within(head, canonical)
    hosts = {} if within is None else {ADAPTER: _host(within)}
    if head.family in ON_TARGET:
        return hosts
    if is_decoder(head):
        from graftline.models.heads.dflash_host import dflash_host
        from graftline.models.heads.eagle_host import eagle_hosts

        shared = shared_of(canonical)
        if head.family in BLOCKS:
            made = [dflash_host(head, facts, shared, say)]
        else:
            made = eagle_hosts(by_depth(head), facts, shared, say, config)
        for number, host in enumerate(made):
            own = replace(host, states=_host(host.model).states)
            hosts[stage_name(head_owner(number), EXPORT)] = own
        return hosts
    for number, model in enumerate(head_graphs(head, canonical)):
        hosts[stage_name(head_owner(number), EXPORT)] = _host(model)
    return hosts


def exit_of(head: Head) -> int | None:
    """After how many blocks of its target a head was trained to stand; None where it stands behind
    no exit, or its files do not say."""
    settings = head.settings
    return settings.exit if isinstance(settings, KangarooSettings | AcceleratorSettings) else None


def routes_of(head: Head) -> str:
    """The routes that routers choose among, as the schedule takes them; "" of any other head."""
    routes = head.settings.routes if isinstance(head.settings, RouterSettings) else ()
    return ",".join("+".join(map(str, route)) for route in routes)


def _host(model: ir.Model) -> Host:
    tensors = (v.const_value for v in model.graph.initializers.values())
    stored = (t.narrow if isinstance(t, Widened) else t for t in tensors)
    files = {file_of(tensor) for tensor in stored if isinstance(tensor, ir.ExternalTensor)}
    states = {file: state for file in files if (state := file_state(file)) is not None}
    return Host(model, read_facts(model), states=states)


def shared_of(canonical: ir.Model) -> Shared:
    """The token embedding and the lm_head of a host, in fp32 and unread. Raises CheckpointError
    where either is more than a matrix."""
    from graftline.models.heads.eagle_host import Shared

    (head,), (table,) = (with_role(canonical.graph, role) for role in ("lm_head", "embedding"))
    linear, stored = Linear.of(head), table.inputs[0]
    if linear.bias is not None or stored is None or stored.const_value is None:
        raise CheckpointError(
            "the host's lm_head has a bias, or its embedding is computed: an EAGLE or MTP head "
            "shares both as plain matrices"
        )
    scores = tensor_of(linear.weight.stored)
    if not linear.weight.turned:
        shape, weight = linear.weight.shape[::-1], linear.weight
        scores = lazy(lambda: weight.rows().astype(np.float32), FLOAT, shape, "lm_head.weight")
    return Shared(
        widened(stored.const_value, "embedding.weight"), widened(scores, "lm_head.weight")
    )


def heads_on_target(head: Head, hosts: Mapping[str, Host]) -> ir.Model | None:
    """The graph of a head that passes on the target read: of heads that read nothing but a state,
    of one whose features the target makes, of the layer that it stands behind, or of embeddings
    that the target reads."""
    if head.family == EMBEDDED:
        return embeddings_graph(numbers(head.tensors[PLACEHOLDERS]))
    if ADAPTER in hosts:
        return hosts[ADAPTER].model
    host = hosts.get(stage_name(HEAD, EXPORT))
    return host.model if host is not None and is_read(host.model) else None


def is_read(head: ir.Model) -> bool:
    """Whether passes on the target read this graph of a head."""
    facts = read_facts(head)
    sole = isinstance(facts, DraftHeadFacts) and not facts.tokens and not facts.markov
    return sole or TapReading.read(head) is not None


def is_sequential(head: Head) -> bool:
    """Whether its heads read the tokens that those before them drafted, and are a stage each."""
    settings = head.settings
    return isinstance(settings, HydraSettings) and settings.grounded and not is_decoder(head)


def is_decoder(head: Head) -> bool:
    """Whether it is a decoder of its own: EAGLE's, MTP's, a block's, and Hydra's of one layer."""
    settings = head.settings
    stepped = isinstance(settings, HydraSettings) and settings.architecture in LAYERS
    return stepped or head.family in DECODERS


def recipe_of(head: Head) -> str:
    """The recipe of a head where none is chosen. Of Hydra's, a decoder drafts as EAGLE's do, and
    heads that read no drafted token as Medusa's."""
    if isinstance(head.settings, HydraSettings) and not is_sequential(head):
        return RECIPES["eagle" if is_decoder(head) else "medusa"]
    return RECIPES[head.family]


def own_passes(head: Head, chosen: Recipe) -> str | None:
    """The passes of the recipe for a head that reads other hidden states of its target than most;
    None where the recipe's own bring out what it reads."""
    brought_out = _brings_out(head)
    if brought_out == FINAL_TAP or FINAL_TAP not in chosen.passes:
        return None
    return chosen.passes.replace(FINAL_TAP, brought_out)


def check_recipe(head: Head, chosen: Recipe) -> None:
    """Raise GraftlineError for a recipe that drafts with heads of another family."""
    known = recipe(recipe_of(head))
    if NEED not in chosen.needs:
        return
    if (known.schedule or chosen.schedule) and chosen.name != known.name:
        raise GraftlineError(
            f"the recipe {chosen.name} takes no {head.family} head, which {head.source} holds; use "
            f"--recipe {known.name}"
        )
    if chosen.asks != known.drafter:
        raise GraftlineError(
            f"the recipe {chosen.name} drafts with {chosen.asks} heads, and {head.source} holds "
            f"{head.family} heads; use --recipe {known.name}"
        )
    if is_decoder(head) and (lacks := _lacking(known.head, chosen.head)) is not None:
        raise GraftlineError(
            f"the recipe {chosen.name} has no {lacks} for a head, which the "
            f"{known.name} head {head.source} needs; use --recipe {known.name}"
        )


def _lacking(needed: str, passes: str) -> Graft | None:
    """The first pass of `needed` that `passes` do not have. Options may differ, but for which
    hidden states are brought out."""
    grafts = Pipeline.parse(passes, GRAFTS).grafts
    for graft in Pipeline.parse(needed, GRAFTS).grafts:
        alike = [one for one in grafts if one.name() == graft.name()]
        if not alike or (isinstance(graft, Tap) and graft not in alike):
            return graft
    return None


def planned(head: Head, plan: HeadPlan) -> HeadPlan:
    """The plan with the stages of that head: none of what is put into the target's own graphs, and
    of heads that read one another's tokens, or states, one each, called one by one. Raises
    GraftlineError for what is put there and of which a precision was asked for."""
    if head.family in ON_TARGET:
        if plan.said != plan.path:
            raise GraftlineError(
                f"--head {plan.said}: {ON_TARGET[head.family]}; give {plan.path}"
            )
        return replace(plan, count=0, routes=routes_of(head))
    if is_decoder(head):
        return replace(plan, count=len(by_depth(head)))
    sequential = is_sequential(head)
    if not sequential:
        plan = plan.check_layers(head.settings.layers).check_bigrams(_bigrams(head))
    return replace(plan, count=head.settings.heads if sequential else 1)


def _bigrams(head: Head) -> int:
    """The rank of its bigram matrix, 0 without one."""
    return head.settings.markov if isinstance(head.settings, MedusaSettings) else 0


def check_tap(head: Head, target: ir.Model) -> None:
    """Raise GraftlineError unless the target brings out what the head reads, or reads it."""
    if head.family in EXITING:  # the target's pass is in the plan, whatever --passes says
        return
    if (graft := FORETELLING.get(head.family)) is not None:
        if not decoder_facts(target).placeholders:
            raise GraftlineError(
                "--head: these passes give the tokens to come no ids, which the head foretells; "
                f"put {graft} into --passes"
            )
        return
    if head.family == CORRECTING:
        if not by_role(read_ports(target), HELD, "in"):
            raise GraftlineError(
                "--head: these passes keep nothing for steps that pass blocks by; put "
                "refresh-state into --passes"
            )
        return
    if head.family == ROUTER:
        if not by_role(read_ports(target), ROUTERS, "out"):
            raise GraftlineError(
                "--head: these passes say of no block whether it is needed; put routers into "
                "--passes"
            )
        return
    ports = read_ports(target)
    features = bool(by_role(ports, FEATURES, "out"))
    final = any(port.tap == POSTNORM for port in by_role(ports, "hidden", "out"))
    needs = _brings_out(head)
    if not (final if needs == FINAL_TAP else features):
        raise GraftlineError(
            "--head: these passes bring out no hidden state for the head to read; put "
            f"{needs} into --passes"
        )


def _brings_out(head: Head) -> str:
    """The pass on the target that brings out what the head reads: of hidden states other than the
    final norm's, or features that are made of them, head-features."""
    if is_prefixed(head):
        return OWN_LAYER
    return OWN_TAPS if head.family == "eagle3" or head.taps != (FINAL,) else FINAL_TAP
